import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dynamics.cli.help import COMMANDS
from distill_dynamics.cli.main import main

TINY = {"img_size": 28, "patch_size": 14, "in_chans": 1, "num_classes": 10}
TINY |= {"embed_dim": 12, "depth": 2, "num_heads": 2}
CONFIG: dict[str, Any] = {
    "model": {
        "student": {"name": "deit_tiny_patch16_224", "timm_kwargs": TINY},
        "teacher": {"name": "deit_tiny_patch16_224", "timm_kwargs": TINY},
        "terms": {
            "earlier": {"loss": {"class_path": "distill_dynamics.losses.SpectralKD"}, "last": 1},
            "spectral": {"loss": {"class_path": "distill_dynamics.losses.ProjectorKD"}, "first": 1},
        },
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
        "scheduler": {
            "class_path": "distill_dynamics.schedule.WarmupCosine",
            "init_args": {"warmup_epochs": 0},
        },
    },
    "data": {"class_path": "distill_dynamics.data.FashionMNISTSample", "init_args": {"batch_size": 8}},
    "trainer": {"max_epochs": 1, "limit_train_batches": 0.01, "limit_val_batches": 0.1, "accelerator": "cpu"},
    "probe": {"every_n_epochs": 0},
    "wandb": {"mode": "disabled"},
}
GONE = object()
WORDS = "fit, validate, test, predict, analyze, report, export, dashboard, convert, cache-teacher"


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(variable, "0")  # seed_everything sets them; here they are put back


def write(edits: dict[str, Any] | None = None, path: str = "experiment.yaml") -> str:
    config = deepcopy(CONFIG)
    for dotted, value in (edits or {}).items():
        *above, last = dotted.split(".")
        section = config
        for name in above:
            section = section.setdefault(name, {})
        if value is GONE:
            del section[last]
        else:
            section[last] = value
    Path(path).write_text(yaml.safe_dump(config))
    return path


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1, output.err
    assert "Traceback" not in output.err
    assert "usage:" not in output.err
    return output.err


KEYS = {
    "trainr.max_epochs": "'trainer'",
    "trainer.max_epoch": "'max_epochs'",
    "max_epochs": "'trainer.max_epochs'",
    "optimizer.init_args.lr": "'model.optimizer'",
    "model.studnt": "'student'",
    "model.student.nam": "'name'",
    "model.teacher.nam": "'name'",
    "model.teacher.init_arg": "'init_args'",
    "model.terms.spectral.frist": "'first'",
    "model.terms.spectral.loss.init_args.trainble": "'trainable'",
    "model.optimizer.init_args.wd": "weight_decay",
    "model.scheduler.init_args.warmup_epoch": "'warmup_epochs'",
    "data.init_args.batch_sizee": "'batch_size'",
    "probe.every_n_epoch": "'every_n_epochs'",
    "wandb.projct": "'project'",
}


@pytest.mark.parametrize(("dotted", "right"), KEYS.items(), ids=KEYS)
def test_misspelt_key_in_yaml(capsys, dotted, right):
    line = refused(capsys, "fit", "--config", write({dotted: 1}))
    where = re.match(r"error: experiment\.yaml:(\d+): ([\w.]+): ", line)
    assert where is not None, line
    assert dotted.startswith(where[2])
    assert (
        Path("experiment.yaml")
        .read_text()
        .splitlines()[int(where[1]) - 1]
        .strip()
        .startswith(where[2].split(".")[-1] + ":")
    )
    assert right in line


@pytest.mark.parametrize(("dotted", "right"), [*KEYS.items()][1::2], ids=[*KEYS][1::2])
def test_misspelt_key_on_the_command_line(capsys, dotted, right):
    line = refused(capsys, "fit", "--config", write(), f"--{dotted}", "1")
    assert line.startswith("error: --")
    assert right in line


VALUES = [
    ("trainer.max_epochs", "abc", "a whole number or null, not abc"),
    ("model.alpha", "high", "a number or null, not high"),
    ("model.student.pretrained", "yess", "true or false, not yess"),
    (
        "model.terms.spectral.pairs",
        [[1, 2, 3]],
        r"\[0\]: expected a tuple with 2 elements, not \[1, 2, 3\]",
    ),
    ("model.terms.spectral.pairs", "alll", "did you mean 'all'"),
    ("model.terms.spectral.weight", "much", "a number, not much"),
    ("model.terms", [1], r"a mapping or null, not \[1\]"),
    ("model.terms.spectral", "distill_dynamics.losses.SpectralKD", "keys of a Term .loss, weight"),
    ("model.teacher", "cait_s24_224", "keys of a Backbone .name"),
    ("data.init_args.batch_size", "many", "a whole number, not many"),
    ("wandb.mode", "onlin", "did you mean 'online'"),
    ("trainer", 3, "trainer: expected a mapping, not 3"),
    ("probe", None, "probe: expected a mapping, not null"),
]
CLASSES = [
    ("data.class_path", "distill_dynamics.data.FashionMNIT", "'distill_dynamics.data.FashionMNIST'"),
    ("data.class_path", "FashionMNISTSampl", "'FashionMNISTSample'"),
    ("data.class_path", "distill_dynamics.losses.SoftKD", "no subclass of ImageData"),
    ("model.optimizer.class_path", "torch.optim.Adamm", "'torch.optim.Adam'"),
    ("model.optimizer.class_path", "AdamWw", "'AdamW'"),
    ("model.terms.spectral.loss.class_path", "distill_dynamics.losses.SpectralKd", "losses.SpectralKD'"),
    ("model.terms.spectral.loss.class_path", "distill_dynamics.loses.SpectralKD", "losses.SpectralKD'"),
    ("model.terms.spectral.loss.class_path", "distil_dynamics.losses.SpectralKD", "losses.SpectralKD'"),
    ("model.terms.spectral.loss.class_path", "SpectralKd", "'SpectralKD'"),
    ("model.terms.spectral.loss.class_path", "torch.optim.AdamW", "no subclass of Module"),
    ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.EarlyStoping"}], "EarlyStopping'"),
    ("trainer.callbacks", [{"class_path": "EarlyStopping", "init_args": {"monitr": "x"}}], "'monitor'"),
]


@pytest.mark.parametrize(("dotted", "value", "right"), VALUES + CLASSES)
def test_wrong_value_or_class_in_yaml(capsys, dotted, value, right):
    line = refused(capsys, "fit", "--config", write({dotted: value}))
    assert re.match(rf"error: experiment\.yaml:\d+: {re.escape(dotted)}\b", line)
    assert re.search(right, line)


@pytest.mark.parametrize(
    ("dotted", "value", "right"), [case for case in VALUES if isinstance(case[1], str)][::2]
)
def test_wrong_value_on_the_command_line(capsys, dotted, value, right):
    line = refused(capsys, "fit", "--config", write(), f"--{dotted}={value}")
    assert line.startswith(f"error: --{dotted}: ")
    assert re.search(right, line)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"model.student.name": GONE}, ["model.student", "give the name of a timm model"]),
        ({"model.student": GONE}, ["required", "model.student"]),
        ({"model.terms.spectral.loss": GONE}, ["experiment.yaml", "model.terms", "required", "loss"]),
        ({"data": GONE}, ["required", "data", "FashionMNISTSample"]),
        ({"data.class_path": GONE}, ["data", "class_path is missing", "FashionMNISTSample"]),
        ({"data.clas_path": "CIFAR10", "data.class_path": GONE}, ["clas_path", "'class_path'"]),
    ],
)
def test_something_required_is_missing(capsys, edits, words):
    line = refused(capsys, "fit", "--config", write(edits))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fitt"], ["'fitt'", "'fit'"]),
        (
            ["--trainer.max_epochs", "3", "fit"],
            [f"command ({WORDS}) comes first"],
        ),
        (
            ["--config", "experiment.yaml", "fit"],
            [f"command ({WORDS}) comes first"],
        ),
        (["fit"], ["model.student and data", "--config"]),
        (["fit", "experiment.yaml"], ["did you mean --config experiment.yaml"]),
        (["fit", "--config"], ["--config", "expected one argument"]),
        (["fit", "--config", "experimnt.yaml"], ["experimnt.yaml: no such file", "'experiment.yaml'"]),
        (["fit", "--config", "nowhere/experiment.yaml"], ["nowhere/experiment.yaml: no such file"]),
        (["fit", "--config", "."], ["is a folder", "experiment.yaml"]),
        (["fit", "--config", "empty.yaml"], ["empty.yaml: is empty"]),
        (["fit", "--config", "list.yaml"], ["list.yaml: holds no keys"]),
        (["fit", "--config", "open.yaml"], ["open.yaml:3: no valid YAML"]),
        (["fit", "--config", "experiment.yaml", "--config", "tab.yaml"], ["tab.yaml:2: no valid YAML"]),
        (["fit", "--config", "binary.ckpt"], ["binary.ckpt: no text file"]),
        (["fit", "--config", "experiment.yaml", "--trainer", "no.yaml"], ["--trainer: 'no.yaml' is no"]),
        (["fit", "--print-config"], ["'print_config'"]),
    ],
)
def test_commands_and_config_files(capsys, args, words):
    write()
    Path("empty.yaml").write_text("# nothing yet\n")
    Path("list.yaml").write_text("- 1\n")
    Path("open.yaml").write_text("model:\n  student: {name: x\ndata: 3\n")
    Path("tab.yaml").write_text("model:\n\tstudent: 3\n")
    Path("binary.ckpt").write_bytes(bytes([0x80, 0xFF, 0xFE]))
    line = refused(capsys, *args)
    for word in words:
        assert word in line


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("name", "deit_tiny_patch16_22", "'deit_tiny_patch16_224'"),
        ("timm_kwargs", {**TINY, "embed_dm": 3}, "'embed_dim'"),
        ("checkpoint", "nowhere.safetensors", "no such file: nowhere.safetensors"),
    ],
)
def test_what_a_model_refuses(capsys, role, key, value, right):
    place = f"model.{role}.{key}"
    in_yaml, on_command_line = [write({place: value}, "wrong.yaml")], [write(), f"--{place}", str(value)]
    line = refused(capsys, "fit", "--config", *(in_yaml if role == "teacher" else on_command_line))
    assert line.startswith(f"error: model.{role}: ")
    assert right in line


def test_the_classes_that_a_cache_keeps_are_one_at_least(capsys):
    line = refused(capsys, "cache-teacher", "--config", write(), "--out", "o", "--top_k", "0")
    assert line == "error: --top_k: expected a whole number above 0\n"


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"data.init_args.augment": {"hfip": 0.5}}, ["augment", "'hflip'"]),
        ({"model.terms.spectral.first": 3}, ["model.terms.spectral"]),
        ({"model.alpha": 2}, ["model.alpha", "between 0 and 1"]),
        ({"trainer.accelerator": "abacus"}, ["trainer: ", "abacus", "cpu"]),
        ({"trainer.devices": 0}, ["trainer: ", "devices"]),
        ({"runs_dir": "experiment.yaml"}, ["experiment.yaml: File exists"]),
    ],
)
def test_what_is_refused_before_training(capsys, edits, words):
    line = refused(capsys, "fit", "--config", write(edits))
    for word in words:
        assert word in line


def printed(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    output = capsys.readouterr()
    assert stop.value.code in (0, None)
    assert output.err == ""
    return output.out


def test_a_config_may_lie_in_the_home_directory_or_be_written_out(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write()
    text = printed(capsys, "fit", "--config=~/experiment.yaml", "--print_config")
    assert printed(capsys, "fit", "--config", Path("experiment.yaml").read_text(), "--print_config") == text


def test_help_lists_the_commands(capsys):
    text = " ".join(printed(capsys, "--help").split())
    for command, sentence in COMMANDS.items():
        assert f"{command} {sentence}" in text
    assert "python -m distill_dynamics fit --config packaged:quickstart" in text
    assert "Lightning" not in text


def test_nothing_asked_for_is_answered_with_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert COMMANDS["fit"].split()[0] in capsys.readouterr().out


def test_a_later_configs_terms_take_the_place_of_all(capsys, tmp_path):
    files = []
    for name, term in (("one", {"weight": 0.7, "first": 2}), ("two", {"last": 1})):
        spectral = {"loss": {"class_path": "distill_dynamics.losses.SpectralKD"}, **term}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"model": {"terms": {name: spectral, "spectral": spectral}}}))
        files += ["--config", str(path)]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *files, "--model.terms.two.budget", "0.3", "--print_config"])
    assert exit_.value.code == 0
    terms = yaml.safe_load(capsys.readouterr().out)["model"]["terms"]
    assert {name: (t["weight"], t["first"], t["last"], t["budget"]) for name, t in terms.items()} == {
        "two": (0.2, 0, 1, 0.3),
        "spectral": (0.2, 0, 1, None),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, command, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert COMMANDS[command] in " ".join(text.split())
    assert text.index("--config") < text.index("--ckpt_path") < text.index("--model.student")
    assert text.index("--data") < text.index("--trainer.max_epochs")
    assert ("--probe.every_n_epochs" in text) == (command == "fit")
    assert ("--predictions" in text) == (command == "predict")
    for word in ("weights_only", "type:", "known subclasses", "<class '"):
        assert word not in text
    assert text.count("\n") < 260


@pytest.mark.parametrize("given", [[], ["--config", "experiment.yaml", "--model.alpha", "0.5"]])
def test_print_config_can_be_fed_back(capsys, given):
    write()
    first = printed(capsys, "fit", *given, "--print_config")
    Path("printed.yaml").write_text(first)
    assert printed(capsys, "fit", "--config", "printed.yaml", "--print_config") == first
    if given:
        config = yaml.safe_load(first)
        assert config["model"]["alpha"] == 0.5
        assert config["model"]["terms"]["spectral"]["first"] == 1
        assert config["trainer"]["max_epochs"] == 1


@pytest.mark.slow
def test_fit_says_nothing_on_stderr():
    teacher = {
        "name": "cait_xxs24_224",
        "checkpoint": "packaged:cait_fashion_mnist",
    }  # one without is told of
    write({"wandb.mode": "offline", "probe.every_n_epochs": 1, "model.teacher": teacher})
    command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", "experiment.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--trainer.enable_progress_bar", "false"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "experiment-1" in done.stdout
