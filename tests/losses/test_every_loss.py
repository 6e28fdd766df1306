"""What holds for every loss of the package, whatever it reads."""

import inspect

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from distill_dynamics import losses
from distill_dynamics.train.optimise import decay_groups

B, K, WIDTHS = 4, 7, {"student": 5, "teacher": 8}
ARGUMENTS = {
    "FitNet hinge": {"hinge": True},
    "PCATarget whiten": {"whiten": True},
    "PCATarget narrow": {"rank": 2, "rotate": False},
    "PCATarget by schedule": {"rank": lambda progress: 1 + 4 * progress},
    "DKD of CIFAR": {"beta": 8.0, "temperature": 4.0},
    "AttentionTransfer of 1": {"power": 1.0},
    "TokenKD whiten": {"standardise": "whiten"},
    "TokenKD phi-s": {"standardise": "phi-s"},
    "PooledKD phi-s": {"standardise": "phi-s"},
}
"""Losses with other arguments than their defaults, by the name of the class and what is other."""
LOSSES = [name for name in losses.__all__ if inspect.isclass(getattr(losses, name))] + [*ARGUMENTS]


def shape(word):
    who, _, what = word.partition("_")
    width = WIDTHS.get(who)
    shapes = {"logits": (K,), "dist_logits": (K,), "map": (width, 3, 3)}
    shapes |= dict.fromkeys(("pooled", "class_token"), (width,))
    return shapes.get(what, (2, 9, 9))


def given(loss, images=B, dtype=torch.float32):
    """Random values of what the loss reads; the student's are leaves with a gradient."""
    generator = torch.Generator().manual_seed(0)
    values = {}
    for word in inspect.signature(loss.forward).parameters:
        if word in ("targets", "progress"):
            values[word] = torch.arange(images) % K if word == "targets" else 0.5
            continue
        x = torch.randn(images, *shape(word), generator=generator, dtype=torch.float64)
        values[word] = (x.softmax(-1) if "attention" in word else x).to(dtype).requires_grad_()
    return values


def make(name):
    torch.manual_seed(0)
    loss, arguments = getattr(losses, name.split()[0]), ARGUMENTS.get(name, {})
    wanted = [*inspect.signature(loss).parameters][:2] == ["student_channels", "teacher_channels"]
    made = loss(*WIDTHS.values(), **arguments) if wanted else loss(**arguments)
    if hasattr(made, "fit"):
        made.fit([{k: v.detach() for k, v in given(made, 12).items() if k.startswith("teacher")}])
    return made


def value(name, loss, inputs):
    torch.manual_seed(1)  # of those that draw
    return loss(**inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_one_finite_number_without_a_gradient_for_the_teacher(name):
    loss = make(name)
    inputs = given(loss)
    total = value(name, loss, inputs)
    assert total.shape == ()
    assert total.isfinite()
    total.backward()
    for word, x in inputs.items():
        if word.startswith("student"):
            assert x.grad.isfinite().all()
            assert x.grad.any()
        elif word.startswith("teacher"):
            assert x.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_raised_first(name):
    loss = make(name)
    half = given(loss, dtype=torch.bfloat16)
    whole = {word: x if word in ("targets", "progress") else x.float() for word, x in half.items()}
    expected = value(name, loss, whole).item()
    with torch.autocast("cpu", torch.bfloat16):
        total = value(name, loss, half)
    assert total.dtype == torch.float32
    projects = any(p.requires_grad for p in loss.parameters())  # in autocast's precision
    assert total.item() == pytest.approx(expected, rel=0.02 if projects else 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_what_it_learns_is_trained_and_a_student_that_only_follows_it_lowers_it(name):
    loss = make(name)
    inputs = given(loss)
    followed = [x for word, x in inputs.items() if word.startswith("student")]
    scores = [x for word, x in inputs.items() if "student_attention" in word]
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    decayed = decay_groups(loss, set())  # as a training does it
    groups = [{"params": followed, "weight_decay": 0.0}, *decayed]
    optimizer = torch.optim.AdamW(groups, lr=0.03, weight_decay=0.05)
    values = []
    for _ in range(60):
        total = value(name, loss, inputs)
        values.append(total.item())
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None for p in loss.parameters() if p.requires_grad)
        assert all(x.grad.any() for x in followed)
        optimizer.step()
        for x in scores:  # rows of sum 1
            x.data = x.data.clamp(min=1e-4) / x.data.clamp(min=1e-4).sum(-1, keepdim=True)
    assert values[-1] < values[0] - 0.1 * abs(values[0]), values[::10]
    for name, p in loss.named_parameters():
        assert not torch.equal(before[name], p), name


OF_EACH_IMAGE = sorted({*LOSSES} - {"DIST", "SP", "RKD", "Manifold", "MaskedGeneration"})
"""Those that neither look at the relations among the images of a batch nor draw."""


@pytest.mark.parametrize("name", OF_EACH_IMAGE)
def test_it_does_not_depend_on_how_many_images_there_are(name):
    """Means, not sums: the same images twice have the same loss."""
    loss = make(name)
    once = given(loss)
    twice = {word: torch.cat([x, x]) if isinstance(x, torch.Tensor) else x for word, x in once.items()}
    assert value(name, loss, twice).item() == pytest.approx(value(name, loss, once).item(), rel=1e-5)


# --- two ranks ----------------------------------------------------------------------------------------

SHARED = sorted({*LOSSES} - {"MaskedGeneration", "FitNet hinge"})
"""But for one that draws on each rank, and one that is cut off by the batch of each."""


class Student(nn.Module):
    """A scale for each value of what the loss reads of the student, beside the loss."""

    def __init__(self, name, inputs):
        super().__init__()
        self.loss = make(name).double()
        words = [word for word in inputs if word.startswith("student")]
        self.scales = nn.ParameterDict({w: nn.Parameter(torch.ones_like(inputs[w][0])) for w in words})

    def forward(self, inputs):
        scaled = {word: inputs[word].detach() * scale for word, scale in self.scales.items()}
        return self.loss(**inputs | scaled)


def stepped(module, inputs):
    total = module(inputs)
    total.backward()
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    return total.item(), {name: p.grad.clone() for name, p in inner.named_parameters() if p.requires_grad}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result = {}
    for name in SHARED:
        inputs = given(make(name), dtype=torch.float64)
        module = DistributedDataParallel(Student(name, inputs))
        half = slice(rank * 2, rank * 2 + 2)
        part = {w: x[half] if isinstance(x, torch.Tensor) else x for w, x in inputs.items()}
        result[name] = stepped(module, part)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(work, (str(folder),), 2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", SHARED)
def test_two_ranks_have_the_loss_and_the_gradient_of_one(ranks, name):
    inputs = given(make(name), dtype=torch.float64)
    alone, gradients = stepped(Student(name, inputs), inputs)
    (one, of_one), (other, of_other) = (rank[name] for rank in ranks)
    assert (one + other) / 2 == pytest.approx(alone, rel=1e-9)
    assert gradients.keys() == of_one.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(of_one[key], gradient, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(of_other[key], gradient, rtol=1e-6, atol=1e-9)
