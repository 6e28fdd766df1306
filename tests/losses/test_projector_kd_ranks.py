import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from distill_dynamics.losses import ProjectorKD
from distill_dynamics.losses.projector import standardise

IMAGES = 6
EQUAL, UNEQUAL = (3, 3), (1, 5)


class Distilled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.student = nn.Conv2d(3, 4, 3)
        self.term = ProjectorKD(4, 5)

    def forward(self, images, teacher_map):
        return self.term(self.student(images), teacher_map)


def data():
    torch.manual_seed(0)
    return torch.randn(IMAGES, 3, 8, 8), torch.randn(IMAGES, 5, 6, 6) * torch.arange(1, 7.0)[
        :, None, None, None
    ]


def far_from_zero():
    # A mean a thousand deviations away, and the ranks' means further apart than their images.
    torch.manual_seed(2)
    return 1000 + torch.randn(IMAGES, 2, 4, 4) + torch.tensor([0, 5, 5, 5, 5, 5.0])[:, None, None, None]


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images, teacher_map = data()
    result = {}
    for name, sizes in {"equal": EQUAL, "unequal": UNEQUAL}.items():
        module = Distilled()
        wrapped = DistributedDataParallel(module)
        loss = wrapped(images.split(sizes)[rank], teacher_map.split(sizes)[rank])
        loss.backward()
        result[name] = {"loss": loss.item(), "gradients": gradients(module)}
        maps = (far_from_zero(), teacher_map)
        result[name]["standardised"] = standardise(*(x.split(sizes)[rank] for x in maps))
    torch.save(result, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(work, args=(str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one_process():
    module = Distilled()
    images, teacher_map = data()
    projected = module.term.projector(module.student(images).movedim(1, -1)).movedim(-1, 1)
    error = (
        F.batch_norm(projected, None, None, training=True)
        - F.batch_norm(teacher_map, None, None, training=True)
    ).square()
    error.mean().backward()
    return {"losses": error.mean(dim=(1, 2, 3)).detach(), "gradients": gradients(module)}


def test_ddps_gradients_are_those_of_the_global_batch(ranks, one_process):
    for rank in ranks:
        torch.testing.assert_close(rank["equal"]["gradients"], one_process["gradients"], rtol=1e-5, atol=1e-6)
    assert one_process["gradients"]["student.weight"].abs().max() > 1e-2
    assert one_process["gradients"]["term.projector.weight"].abs().max() > 1e-2


@pytest.mark.parametrize(("name", "sizes"), [("equal", EQUAL), ("unequal", UNEQUAL)])
def test_each_rank_has_the_mean_over_its_own_images(ranks, one_process, name, sizes):
    for rank, losses in zip(ranks, one_process["losses"].split(sizes), strict=True):
        assert rank[name]["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["equal", "unequal"])
def test_statistics_are_of_all_ranks_images_and_exact(ranks, name):
    for i, x in enumerate([far_from_zero(), data()[1]]):
        expected = F.batch_norm(x.double(), None, None, training=True).float()
        standardised = torch.cat([rank[name]["standardised"][i] for rank in ranks])
        # float32 knows a number near 1000 to 6e-5, and so do the standardised ones.
        torch.testing.assert_close(standardised, expected, rtol=1e-4, atol=1e-4)
