import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from distill_dynamics.analysis.models import Model
from distill_dynamics.cli.completion import CompletionCLI
from distill_dynamics.cli.help import COMMANDS, PLAIN_COMMANDS
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.dynamics import Profile

DEIT = "deit_tiny_patch16_224"
SMALL = "{img_size: 28, patch_size: 14, embed_dim: 16, depth: 2, num_heads: 2}"
ANALYZE = ["analyze", "--model", DEIT, "--timm_kwargs", SMALL, "--n_images", "2", "--out", "out"]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos/a").mkdir(parents=True)
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/a/{i}.png")


@pytest.fixture
def asked(monkeypatch):
    """Calls `main`, and gives what `analyze` is asked for."""

    def call(*args: str) -> dict:
        found: dict = {}
        monkeypatch.setattr(
            "distill_dynamics.analysis.analyze.analyze",
            lambda models, images, out, **rest: found.update(models=models, images=images, out=out, **rest),
        )
        main(["analyze", *args])
        return found

    return call


def refused(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    output = capsys.readouterr()
    assert stop.value.code == 2
    lines = [line for line in output.err.replace("\r", "\n").splitlines() if "it/s]" not in line]
    assert len(lines) == 1, output.err
    assert lines[0].startswith("error: ")
    return lines[0]


# --- analyze ----------------------------------------------------------------------------------------


def test_analyze_on_the_command_line(no_report):
    main([*ANALYZE, "--images", "photos", "--value_range", "layer", "-5e0,5", "--seed", "3", "--bins", "50"])
    content = json.loads(Path("out/analysis.json").read_text())
    assert content["command"].startswith(
        f"python -m distill_dynamics analyze --model {DEIT} --timm_kwargs '{{img"
    )
    assert content["images"]["source"] == "photos"
    assert content["images"]["seed"] == 3
    assert [curve["range"] for curve in content["curves"]] == ["layer", "-5,5"]
    profile = Profile.load(Path("out") / content["curves"][1]["profile"])
    assert (profile.bins, profile.value_range.tolist()) == (50, [[-5, 5]] * 2)


def test_models_by_name_and_as_mappings(asked):
    found = asked(
        "--model", DEIT, "{name: resnet18, pretrained: true, label: R}",
        "{name: b, checkpoint: [x_1.pth, x_2.pth]}",
        "--timm_kwargs", "{in_chans: 1}", "--out", "o",
    )  # fmt: skip
    assert found["models"] == [
        Model(DEIT, timm_kwargs={"in_chans": 1}),
        Model("resnet18", pretrained=True, label="R"),
        Model("b", checkpoint=["x_1.pth", "x_2.pth"]),
    ]


def test_checkpoints_of_one_model(asked):
    found = asked("--model", "a", "--checkpoint", "x_*.pth", "best.pth", "--out", "o")
    assert found["models"] == [Model("a", checkpoint=["x_*.pth", "best.pth"])]


def test_defaults(asked):
    found = asked("--model", "a", "--out", "o")
    assert found["models"] == [Model("a")]
    assert (found["n_images"], found["seed"], found["bins"], found["layers"]) == (32, 0, 100, "all")
    assert (found["value_ranges"], found["bootstrap"], found["device"]) == (["global"], False, "auto")
    assert "sample" in found["images"].name
    assert set(vars(found["overrides"]).values()) == {None}
    assert len(found["images"].source.targets) == 1000


@pytest.mark.parametrize(("given", "n"), [([], 3), (["--n_images", "2"], 2), (["--n_images", "all"], None)])
def test_fewer_images_than_32(asked, given, n):
    assert asked("--model", "a", "--out", "o", "--images", "photos", *given)["n_images"] == n


def test_a_yaml_file_says_the_same(asked):
    options = [
        "--model",
        "a",
        "{name: b, label: c}",
        "--value_range",
        "global",
        "0,1",
        "--n_images",
        "5",
        "--pretrained",
    ]
    options += ["--image_size", "64", "--mean", "0.5", "0.4", "0.3", "--layers", "1", "-1", "--out", "o"]
    settings = {
        "model": ["a", {"name": "b", "label": "c"}],
        "value_range": ["global", [0, 1]],
        "n_images": 5,
        "pretrained": True,
        "image_size": 64,
        "mean": [0.5, 0.4, 0.3],
        "layers": [1, -1],
        "out": "o",
    }
    Path("a.yaml").write_text(yaml.safe_dump(settings))
    one, other = asked(*options), asked("--config", "a.yaml")
    for found in (one, other):
        del found["command"], found["images"]
    assert one == other
    assert one["value_ranges"] == ["global", (0.0, 1.0)]
    assert one["layers"] == [1, -1]
    assert one["overrides"].image_size == 64


def test_hyphens_of_earlier_versions_in_the_names_of_options_are_underscores(asked):
    hyphens = asked(
        "--model", "a", "--out", "o-o", "--n-images=3", "--value-range", "-5,5", "--crop-pct", "0.5"
    )
    assert (hyphens["n_images"], hyphens["value_ranges"], hyphens["out"]) == (3, [(-5.0, 5.0)], "o-o")
    assert hyphens["overrides"].crop_pct == 0.5


def test_the_datamodule_of_a_fits_config(asked):
    init = {"image_size": 20, "crop_pct": 0.8, "batch_size": 4}
    config = {
        "model": {"student": {"name": "x"}},
        "data": {"class_path": "FashionMNISTSample", "init_args": init},
    }
    Path("fit.yaml").write_text(yaml.safe_dump(config))
    images = asked("--model", "a", "--out", "o", "--data", "fit.yaml")["images"]
    assert images.name == "fit.yaml"
    assert images.evaluation == {
        "image_size": (20, 20),
        "crop_pct": 0.8,
        "interpolation": "bicubic",
        "crop_mode": "center",
    }
    data = FashionMNISTSample(**init)
    data.setup("validate")
    assert np.array_equal(images.source.targets, data.sources["val"].targets)


def test_data_of_the_shipped_quickstart_gives_the_probe_of_its_fit(no_report):
    quickstart = ROOT / "configs" / "quickstart.yaml"
    model = "{name: cait_xxs24_224, checkpoint: 'packaged:cait_fashion_mnist'}"
    main(["analyze", "--model", model, "--data", str(quickstart), "--n_images", "4", "--out", "out"])
    profile = Profile.load("out/profiles/cait_xxs24_224/global/model.npz")
    data = FashionMNISTSample(**yaml.safe_load(quickstart.read_text())["data"]["init_args"])
    data.setup("validate")
    assert profile.probe_id == data.probe_set(4).probe_id


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--modle", "x"], ["--modle", "'model'"]),
        (["--valu_range", "layer"], ["--valu_range", "'value_range'"]),
        (["--model", "cait_s24_22"], ["'cait_s24_224'"]),
        (["--model", "{nam: x}"], ["--model", "'nam'", "'name'"]),
        (["--model", "{label: x}"], ["--model", "required, but not given: name"]),
        (["--model", "{name: x, timm_kwargs: 3}"], ["timm_kwargs: expected a mapping, not 3"]),
        (["--model", DEIT, "b", "--checkpoint", "x.pth"], ["--checkpoint", "{name: deit_tiny_patch16_224"]),
        (["--model", "{name: x}", "--checkpoint", "x.pth"], ["--checkpoint"]),
        (["--model", "{name: x}"], ["--timm_kwargs", "by name alone", "{name: x, timm_kwargs: ...}"]),
        (["--model", "{name: x}", "--pretrained"], ["--pretrained", "{name: x, pretrained: ...}"]),
        (["--timm_kwargs", "{embed_dm: 3}"], ["'embed_dm'", "'embed_dim'"]),
        (["--timm_kwargs", "3"], ["--timm_kwargs: expected a mapping"]),
        (["--model", "{name: x, checkpoint: [1]}"], ["--model.checkpoint[0]: expected text, not 1"]),
        (["--layers", "all", "1"], ["--layers: give numbers, or all"]),
        (["--images", ""], ["--images"]),
        (["--images", "nowhere"], ["--images", "nowhere"]),
        (["--images", "empty"], ["--images", "empty", "no image"]),
        (["--images", "broken"], ["unreadable image broken/", "--skip_unreadable"]),
        (["--images", "photos", "--data", "a.yaml"], ["either --images or --data"]),
        (["--checkpoint", "none_*.pth"], ["none_*.pth", "no file matches"]),
        (["--checkpoint", "none.pth"], ["none.pth", "no such file"]),
        (["--checkpoint", "epoch_1.pth", "other/epoch_1.pth"], ["epoch_1.pth", "both of epoch 1"]),
        (["--value_range", "leyer"], ["--value_range", "'layer'"]),
        (["--value_range", "1,x"], ["--value_range", "'1,x'"]),
        (["--value_range", "-inf,inf"], ["value_range", "lo < hi"]),
        (["--value_range", "1,0"], ["lo < hi", "(1.0, 0.0)"]),
        (["--n_images", "some"], ["--n_images", "a whole number, 'all' or null"]),
        (["--n_images", "5000"], ["--n_images", "1000 images"]),
        (["--device", "gpu"], ["--device", "'cuda'"]),
        (["--interpolation", "cubic"], ["--interpolation", "'bicubic'"]),
        (["--bins", "many"], ["--bins", "a whole number"]),
        (["--layers", "3"], ["layer 3 does not exist"]),
        (["--out", "photos"], ["--out", "photos", "new folder"]),
        (["--out", "photos/a/0.png"], ["photos/a/0.png", "File exists"]),
        (["--data", "none.yaml"], ["none.yaml: no such file"]),
        (["--data", "nodata.yaml"], ["--data", "nodata.yaml", "no `data:`"]),
        (["--data", "misspelt.yaml"], ["misspelt.yaml:4: data.init_args.batch_sizee", "'batch_size'"]),
        (["--data", "open.yaml"], ["open.yaml", "no valid YAML"]),
        (["--data", "photos/a/0.png"], ["0.png", "no text file"]),
        (["--config", "wrong.yaml"], ["wrong.yaml:1", "n_imags", "'n_images'"]),
        (["--config", "scalar.yaml"], ["scalar.yaml:1: model", "a list"]),
        (["photos"], ["'photos' is no option"]),
    ],
)
def test_a_mistake_is_one_line(capsys, no_report, args, words):
    Path("empty").mkdir()
    Path("broken").mkdir()
    for name in "xy":
        Path(f"broken/{name}.png").write_bytes(b"no image")
    Path("other").mkdir()
    for path in ("epoch_1.pth", "other/epoch_1.pth"):
        torch.save({}, path)
    data = {"class_path": "FashionMNISTSample", "init_args": {"batch_sizee": 3}}
    Path("misspelt.yaml").write_text(yaml.safe_dump({"data": data}))
    Path("nodata.yaml").write_text("model: {}\n")
    Path("open.yaml").write_text("data: {\n")
    Path("wrong.yaml").write_text("n_imags: 3\n")
    Path("scalar.yaml").write_text("model: a\n")
    line = refused(capsys, *ANALYZE, *args)
    for word in words:
        assert word in line
    assert not Path("out/analysis.json").exists()


def test_a_stop_is_one_line(capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("distill_dynamics.analysis.analyze.profile_ranges", stop)
    with pytest.raises(SystemExit) as caught:
        main(ANALYZE)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nerror: analyze was stopped\n"
    assert not Path("out").exists()


@pytest.mark.filterwarnings("always")
def test_what_is_left_out_is_a_line(no_report, monkeypatch):
    Path("photos/a/x.png").write_bytes(b"no image")
    lines = []
    monkeypatch.setattr(warnings, "showwarning", lambda *args: lines.append(warnings.formatwarning(*args)))
    main([*ANALYZE, "--images", "photos", "--n_images", "all", "--skip_unreadable"])
    (line,) = lines
    assert line.startswith("warning: left out unreadable image photos/a/x.png")
    assert line.count("\n") == 1


def test_what_analyze_needs(capsys):
    assert "model" in refused(capsys, "analyze", "--out", "o")
    assert "out" in refused(capsys, "analyze", "--model", "a")


@pytest.mark.slow  # in this process: test_report_of_an_analysis
def test_as_a_program_nothing_but_bars_on_stderr():
    command = [sys.executable, "-m", "distill_dynamics", *ANALYZE]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Path("out/report.html").is_file()
    assert "random weights" in done.stdout


# --- report and dashboard ---------------------------------------------------------------------------


def test_report_of_an_analysis(no_report, capsys):
    main(ANALYZE)
    output = capsys.readouterr()
    assert "random weights" in output.out
    assert all(
        "it/s" in line or line.startswith(DEIT) for line in output.err.replace("\r", "\n").split("\n") if line
    )
    main(["report", "out", "--out", "page/all.html"])
    assert "<html" in Path("page/all.html").read_text()
    assert {path.suffix for path in Path("page/all_figures").iterdir()} == {".png", ".pdf"}
    main(["report", "out", "--out", "two.html", "--figures", "drawn"])
    assert list(Path("drawn").iterdir())
    assert "two.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--out", "x.html"], ["required", "runs"]),
        (["nowhere", "--out", "x.html"], ["nowhere"]),
        (["photos", "--out", "x.html"], ["photos"]),
        (["photos"], ["required", "out"]),
        (["photos", "--out", "photos"], ["--out", "is a folder"]),
        (["photos", "--outt", "x.html"], ["'outt'", "'out'"]),
    ],
)
def test_a_mistake_in_report_is_one_line(capsys, args, words):
    line = refused(capsys, "report", *args)
    for word in words:
        assert word in line


def test_dashboard_hands_on_what_it_is_told(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(
        "distill_dynamics.report.dashboard.write_dashboard", lambda *args: f"https://{'/'.join(args)}"
    )
    main(["dashboard", "--entity", "me", "--project", "mine", "--name", "It"])
    assert capsys.readouterr().out == "https://me/mine/It\n"
    assert "entity" in refused(capsys, "dashboard", "--project", "mine")


# --- help -------------------------------------------------------------------------------------------


def printed(capsys, *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    output = capsys.readouterr()
    assert (stop.value.code, output.err) == (0, "")
    return output.out


WORDS = ["analyze", "report", "export", "dashboard", "convert", "cache-teacher"]


def test_the_programs_help_lists_its_commands(capsys):
    text = " ".join(printed(capsys, "--help").split())
    assert list(COMMANDS) == ["fit", "validate", "test", "predict"]
    assert list(PLAIN_COMMANDS) == WORDS
    for command, sentence in PLAIN_COMMANDS.items():
        assert f"{command} {sentence}" in text


@pytest.mark.parametrize("command", PLAIN_COMMANDS)
def test_help_of_a_command(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, command, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert PLAIN_COMMANDS[command] in " ".join(text.split())
    assert f"Example: python -m distill_dynamics {command}" in text
    if command != "cache-teacher":  # which takes the options of `fit`
        for word in ("default: null", "(type", "<class '", "Lightning", "==", "print_config"):
            assert word not in text


@pytest.mark.parametrize(
    ("word", "right"), [("analyse", "analyze"), ("reprot", "report"), ("dashbord", "dashboard")]
)
def test_a_misspelt_command(capsys, word, right):
    assert f"did you mean {right!r}" in refused(capsys, word)


def test_a_shell_that_completes_words_is_told_of_every_command(capsys):
    with pytest.raises(SystemExit):
        CompletionCLI(args=["none"])
    choices = capsys.readouterr().err
    for command in (*COMMANDS, *PLAIN_COMMANDS):
        assert f"'{command}'" in choices
