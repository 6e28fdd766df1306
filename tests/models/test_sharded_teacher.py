import os
import re
import subprocess
import sys
import types
import weakref

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, VIT
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from test_fit import checkpoint, fit, rows
from test_precision import HAS_COMPILER
from torch import multiprocessing
from torch.distributed.tensor import DTensor

from distill_dynamics import Backbone, Distiller, UserError
from distill_dynamics.cli.main import main
from distill_dynamics.dynamics import profile_model
from distill_dynamics.models.sharding import blocks, shard
from distill_dynamics.train.checks import check_sharding

NEEDS_COMPILER = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
DINO = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 6}


def large_teacher():
    """The architecture of DINOv3's seven billion, small: rotary positions, register tokens, layer scale."""
    torch.manual_seed(0)
    backbone = Backbone("vit_7b_patch16_dinov3", timm_kwargs=DINO)
    return backbone.requires_grad_(False).eval()


def strategy_of(rank, world):
    environment = LightningEnvironment()
    environment.set_world_size(world)
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * world, cluster_environment=environment)
    environment.set_global_rank(rank)
    return strategy


def answers(backbone):
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = backbone(images, [3, 1])
        return {
            "both": [features.logits, *features.maps],
            "maps": backbone(images, "all", logits=False).maps,
            "logits": [backbone(images).logits],
        }


def whole_blocks(backbone):
    """For each block, which blocks have their parameters whole while it runs."""
    seen = []

    def look(*_):
        blocks = enumerate(backbone.model.blocks)
        seen.append([i for i, block in blocks if not isinstance(next(block.parameters()), DTensor)])

    hooks = [block.register_forward_hook(look, prepend=True) for block in backbone.model.blocks]
    answers(backbone)
    for hook in hooks:
        hook.remove()
    return seen


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    teacher = large_teacher()
    before = [weakref.ref(parameter) for parameter in teacher.parameters()]
    shard(teacher, torch.device("cpu"), 2)
    shard(teacher, torch.device("cpu"), 2)  # as a second fit does
    held = [parameter.to_local() for parameter in teacher.parameters()]
    images = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    result = {
        "answers": answers(teacher),
        "of the whole left": sum(parameter() is not None for parameter in before),
        "whole blocks": whole_blocks(teacher),
        "held": sum(local.untyped_storage().nbytes() for local in held),
        "numbers": sum(local.numel() for local in held),
        "after use": all(isinstance(parameter, DTensor) for parameter in teacher.parameters()),
    }
    profile_model(teacher, images).save(f"{folder}/profile{rank}.npz")
    result["in half"] = answers(teacher.to(torch.bfloat16).float())
    torch.save(result, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    # Forked, they need not import everything anew.
    multiprocessing.start_processes(work, args=(str(folder),), nprocs=2, start_method="fork")
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_each_rank_holds_half_and_answers_as_the_whole(ranks):
    teacher = large_teacher()
    expected = answers(teacher)
    numbers = sum(parameter.numel() for parameter in teacher.parameters())
    for rank in ranks:
        torch.testing.assert_close(rank["answers"], expected, rtol=0, atol=0)
        assert rank["of the whole left"] == 0
        assert rank["held"] / (4 * numbers) == pytest.approx(0.5, abs=0.01)
    assert sum(rank["numbers"] for rank in ranks) == numbers


def test_a_block_is_whole_only_while_it_runs(ranks):
    for rank in ranks:
        assert rank["whole blocks"] == [[0], [1], [2]] * 3
        assert rank["after use"]


def test_it_changes_dtype_as_the_whole_does(ranks):
    expected = answers(large_teacher().to(torch.bfloat16).float())
    for rank in ranks:
        torch.testing.assert_close(rank["in half"], expected, rtol=0, atol=0)


def test_its_profile_is_that_of_the_whole(ranks, folder):
    images = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    profile_model(large_teacher(), images).save(folder / "whole.npz")
    for rank in range(2):
        assert (folder / f"profile{rank}.npz").read_bytes() == (folder / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("cait_xxs24_224", [f"blocks.{i}" for i in range(24)] + [f"blocks_token_only.{i}" for i in range(2)]),
        (
            "swin_tiny_patch4_window7_224",
            [f"layers.{i}.blocks.{j}" for i, n in enumerate([2, 2, 6, 2]) for j in range(n)],
        ),
        ("resnet18", [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]),
    ],
)
def test_blocks_are_what_timm_lists(name, inside):
    backbone = Backbone(name)
    assert blocks(backbone) == [backbone.model.get_submodule(path) for path in inside]


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("other", ["one device", "no ddp"])
def test_it_takes_ddp_and_two_devices(other):
    strategy = strategy_of(0, 1) if other == "one device" else SingleDeviceStrategy("cpu")
    with pytest.raises(UserError) as error:
        check_sharding(types.SimpleNamespace(strategy=strategy, world_size=1))
    line = one_line(error)
    assert all(word in line for word in ["model.shard_teacher", "trainer.strategy: ddp", "trainer.devices"])


def test_shared_parameters_are_refused():
    with pytest.raises(UserError) as error:
        shard(Backbone("coat_lite_tiny"), torch.device("cpu"), 2)
    assert "coat_lite_tiny share parameters" in one_line(error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "strategy: ddp"),
        ({"model__channels_last": True}, "channels last"),
        ({"model__teacher": None, "model__terms": {}}, "without a teacher"),
    ],
)
def test_what_a_config_cannot_mean_is_one_line(experiment, tmp_path, capsys, changes, words):
    with pytest.raises(SystemExit) as stop:
        fit(experiment(**{"model__shard_teacher": True, **changes}))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "shard" in line
    assert words in line
    assert not list((tmp_path / "runs").glob("*"))


def test_only_fit_shards(experiment, capsys):
    main(["validate", "--config", str(experiment(model__shard_teacher=True))])
    assert "val/acc1" in capsys.readouterr().out


def test_before_it_is_sharded_it_goes_to_no_device():
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1, "num_classes": 6})
    distiller = Distiller(student, large_teacher(), shard_teacher=True).to("meta")
    assert {parameter.device.type for parameter in distiller.teacher.backbone.parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in student.parameters()} == {"meta"}


class Tell(Callback):
    """Says on each rank how many bytes of the teacher it holds."""

    def on_train_end(self, trainer, module):
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in module.teacher.backbone.parameters()]
        os.write(1, b"holds %d bytes\n" % sum(part.untyped_storage().nbytes() for part in parts))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"trainer__precision": "bf16-mixed"}, pytest.param({"model__compile": True}, marks=NEEDS_COMPILER)],
    ids=["float32", "bf16", "compiled"],
)
def test_a_run_is_the_same_with_it(experiment, tmp_path, changes):
    spectral = {"class_path": "distill_dynamics.losses.SpectralKD"}
    held = {}
    for name, sharded in {"whole": False, "sharded": True}.items():
        config = experiment(
            name,
            model__shard_teacher=sharded,
            model__terms__spectral={"loss": spectral, "weight": 0.2, "first": 1},
            # Adam would blow round-off up where a gradient is next to nothing.
            model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            model__scheduler=None,
            trainer__devices=2,
            trainer__strategy="ddp",
            trainer__callbacks=[{"class_path": "test_sharded_teacher.Tell"}],
            probe__n_images=1,  # a share of them would be empty on the second rank
            **changes,
        )
        command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", config, "--name", name]
        path = f"{os.path.dirname(__file__)}:{ROOT / 'tests'}"
        environment = {**os.environ, "PYTHONPATH": path}
        ended = subprocess.run(
            command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment
        )
        held[name] = [int(number) for number in re.findall(r"holds (\d+) bytes", ended.stdout)]
    bytes_of_it, _ = held["whole"]
    assert held["sharded"] == pytest.approx([bytes_of_it / 2] * 2, rel=0.02)

    whole, sharded = (tmp_path / "runs" / name for name in ("whole", "sharded"))
    a, b = (checkpoint(run)["state_dict"] for run in (whole, sharded))
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-6)
    numbers = [
        [{k: float(v) for k, v in row.items() if v and k != "train/images_per_s"} for row in rows(run)]
        for run in (whole, sharded)
    ]
    assert {"teacher/acc1", "dynamics/teacher/entropy/block_01"} <= numbers[0][0].keys()
    assert {"train/loss", "train/loss_kd", "train/loss_spectral", "val/acc1"} <= numbers[0][-1].keys()
    for one, other in zip(*numbers, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    one, other = ((run / "dynamics" / "teacher.npz").read_bytes() for run in (whole, sharded))
    assert one == other
