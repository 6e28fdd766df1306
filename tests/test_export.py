"""`export`: what leaves a run as files, run by strangers: timm and onnxruntime."""

import json
import re
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import fit_once, refused
from neighbours import knn_by_hand
from PIL import Image
from test_student_folder import Keep

from distill_dynamics import Backbone
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.models.hub import label_names
from distill_dynamics.models.onnx_files import write_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plain = {"model__teacher": None, "model__terms": None, "probe__every_n_epochs": 0}
    faster = {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 4e-3}}}
    long = {"trainer__limit_train_batches": 40, "trainer__limit_val_batches": 1.0}
    return fit_once(tmp_path_factory.mktemp("export"), **plain, **faster, **long)


@pytest.fixture(scope="module")
def exported(run):
    """The folder with both ONNX files, and what was printed of them is in its card."""
    main(["export", str(run), "--out", str(run.parent / "out"), "--int8"])
    return run.parent / "out"


@pytest.fixture(scope="module")
def validation():
    data = FashionMNISTSample(eval_batch_size=100)
    data.setup("validate")
    return list(data.val_dataloader())


def top1(answer, validation):
    right = [(answer(images) == targets.numpy()).sum() for images, targets in validation]
    return 100 * sum(right) / sum(len(targets) for _, targets in validation)


def by_onnxruntime(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images.numpy()})[0].argmax(1)


def test_the_folder_and_both_files_score_what_validate_says(run, exported, validation):
    keep = "--trainer.callbacks+=test_student_folder.Keep"
    whole = ["--trainer.limit_val_batches", "1.0"]
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "best", keep, *whole])
    said = Keep.metrics["val/acc1"].item()
    assert said > 20  # it has learnt something
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    with torch.no_grad():
        assert top1(lambda x: model(x).argmax(1).numpy(), validation) == pytest.approx(said, abs=0.01)
    assert top1(by_onnxruntime(exported / "model.onnx"), validation) == pytest.approx(said, abs=0.1)
    card = (exported / "README.md").read_text()
    (full,) = re.findall(r"model\.onnx: opset 18.*top-1 ([\d.]+) %", card)
    (small,) = re.findall(r"model_int8\.onnx: .*top-1 ([\d.]+) %.* on 1000 validation images", card)
    assert float(full) == pytest.approx(said, abs=0.1)
    measured = top1(by_onnxruntime(exported / "model_int8.onnx"), validation)
    assert float(small) == pytest.approx(measured, abs=0.006)
    assert abs(measured - said) < 3


def test_any_number_of_images_gives_torchs_logits(exported):
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    for count in (1, 3, 17):
        images = torch.randn(count, 1, 28, 28)
        with torch.no_grad():
            wanted = model(images).numpy()
        np.testing.assert_allclose(session.run(["logits"], {"images": images.numpy()})[0], wanted, atol=1e-4)


def test_the_file_tells_what_it_takes(run, exported):
    content = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(content, full_check=True)
    assert [imported.version for imported in content.opset_import if imported.domain == ""] == [18]
    facts = {one.key: json.loads(one.value) for one in content.metadata_props}
    folder = json.loads((run / "student" / "config.json").read_text())
    assert facts["mean"] == folder["pretrained_cfg"]["mean"]
    assert facts["label_names"] == folder["label_names"]
    weights = onnx.load(exported / "model_int8.onnx").graph.initializer
    assert onnx.TensorProto.INT8 in {weight.data_type for weight in weights}


@pytest.mark.slow
def test_a_net_of_convolutions_is_calibrated(tmp_path, validation):
    net = {"name": "test_efficientnet", "timm_kwargs": {"in_chans": 1, "num_classes": 10}}
    plain = {"model__teacher": None, "model__terms": None, "probe__every_n_epochs": 0, "model__student": net}
    long = {"trainer__limit_train_batches": 60, "trainer__limit_val_batches": 1.0, "trainer__max_epochs": 1}
    run = fit_once(tmp_path, **plain, **long)
    main(["export", str(run), "--out", str(tmp_path / "out"), "--int8"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "weights and activations in 8 bits" in card
    files = [tmp_path / "out" / name for name in ("model.onnx", "model_int8.onnx")]
    full, small = (top1(by_onnxruntime(file), validation) for file in files)
    lost = f"{small - full:+.2f}"
    assert f"({lost.lstrip('+-') if float(lost) == 0 else lost} points)" in card


def test_answers_that_differ_from_torchs_are_not_written(run, tmp_path, capsys, monkeypatch):
    wrong = lambda path: lambda images: torch.zeros(len(images), 10)  # noqa: E731
    monkeypatch.setattr("distill_dynamics.models.onnx_files.answers_of", wrong)
    line = refused(capsys, "export", run, "--out", tmp_path / "out", "--onnx")
    assert "away from torch's" in line
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_does_not_take_any_number_of_images_is_one_line(run, tmp_path, capsys, monkeypatch):
    def answer(images):
        raise onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument("Got: 1 Expected: 2")

    monkeypatch.setattr("distill_dynamics.models.onnx_files.answers_of", lambda path: answer)
    line = refused(capsys, "export", run, "--out", tmp_path / "out", "--onnx")
    assert "does not take 1 images: Got: 1 Expected: 2" in line
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_cait_is_exported_for_any_number_of_images(tmp_path):
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 2}  # whose heads our own form mixes
    backbone = Backbone("cait_xxs24_224", timm_kwargs=size).eval()
    write_onnx(backbone, tmp_path / "model.onnx", None)
    images = torch.randn(3, 3, 32, 32)
    model = timm.create_model("cait_xxs24_224", **size).eval()
    model.load_state_dict(backbone.model.state_dict())
    (found,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, model(images).detach().numpy(), atol=1e-4)


def test_a_run_that_was_killed_has_its_best_checkpoint(run, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(run, killed)
    shutil.rmtree(killed / "student")
    main(["export", str(killed), "--out", str(tmp_path / "out")])
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (run / "student" / name).read_bytes()
    assert "top-1, validation" in (tmp_path / "out" / "README.md").read_text()


def test_a_continued_run_that_was_killed_has_a_newer_best_than_its_folder(run, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(run, killed)
    older = Backbone(checkpoint=run / "student")
    older.get_parameter("model.head.bias").data.zero_()
    names = label_names(killed / "student" / "config.json")
    older.export_folder(killed / "student", names, notes={"epoch": 0, "val_acc1": 1.0})
    config = yaml.safe_load((killed / "config.yaml").read_text())
    gone = {"data_dir": str(tmp_path / "gone"), "image_size": 28}
    config["data"] = {"class_path": "distill_dynamics.data.ImageFolder", "init_args": gone}
    (killed / "config.yaml").write_text(yaml.safe_dump(config))  # the names are known without the images
    main(["export", str(killed), "--out", str(tmp_path / "out")])
    assert label_names(tmp_path / "out" / "config.json") == names
    found, wanted = (folder / "model.safetensors" for folder in (tmp_path / "out", run / "student"))
    assert found.read_bytes() == wanted.read_bytes()


def test_an_exported_folder_is_exported_as_the_run_was(run, exported, tmp_path):
    for source, out in ((exported, "again"), (run, "once")):
        main(["export", str(source), "--out", str(tmp_path / out)])
    again, once = ({f.name: f.read_bytes() for f in (tmp_path / out).iterdir()} for out in ("again", "once"))
    assert again == once


SMALL = {"img_size": 28, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """The folder of a ViT without a head, with both ONNX files, measured on the sample without its labels."""
    folder = tmp_path_factory.mktemp("headless")
    torch.manual_seed(0)
    net = Backbone("vit_tiny_patch16_224", timm_kwargs=SMALL, mean=[0.3] * 3, std=[0.4] * 3).eval()
    net.export_folder(folder / "net")
    data = {
        "class_path": "distill_dynamics.data.FashionMNISTSample",
        "init_args": {"labels": False, "eval_batch_size": 100},
    }
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    out = folder / "out"
    main(["export", str(folder / "net"), "--out", str(out), "--int8", "--data", str(folder / "data.yaml")])
    return out


def test_a_model_without_a_head_gives_its_pooled_features(headless):
    model = timm.create_model(f"local-dir:{headless}", pretrained=True).eval()
    session = onnxruntime.InferenceSession(str(headless / "model.onnx"))
    assert [one.name for one in session.get_outputs()] == ["features"]
    for count in (1, 3):
        images = torch.randn(count, 3, 28, 28)
        with torch.no_grad():
            wanted = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
        (found,) = session.run(["features"], {"images": images.numpy()})
        assert found.shape == (count, 24)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    facts = {one.key: json.loads(one.value) for one in onnx.load(headless / "model.onnx").metadata_props}
    assert facts["mean"] == [0.3] * 3
    assert facts["timm_kwargs"]["num_classes"] == 0


def test_features_in_8_bits_are_measured_by_their_neighbours(headless):
    """The card's numbers, by a loop over queries in numpy; grey images are shown in three channels."""
    data = FashionMNISTSample()
    data.setup("validate")
    pixels = np.asarray(data.sources["val"].pixels, np.float32)[:, None] / 255
    targets = np.asarray(data.sources["val"].targets)
    images = np.repeat((pixels - 0.3) / 0.4, 3, axis=1).astype(np.float32)
    bank = np.zeros(len(targets), bool)
    for label in range(10):
        places = np.flatnonzero(targets == label)
        bank[places[: -(-len(places) // 2)]] = True
    card = (headless / "README.md").read_text()
    for name in ("model.onnx", "model_int8.onnx"):
        (told,) = re.findall(rf"{re.escape(name)}: .*kNN top-1 ([\d.]+) %", card)
        session = onnxruntime.InferenceSession(str(headless / name))
        batches = np.split(images, 10)  # as the data give them: what 8 bits make of one depends on it
        features = np.concatenate([session.run(None, {"images": some})[0] for some in batches]).astype(float)
        found = knn_by_hand(features[bank], targets[bank], features[~bank], 20, 0.07)
        assert float(told) == pytest.approx(100 * np.mean(np.array(found) == targets[~bank]), abs=0.41)
        assert float(told) > 40
    assert "`features` [batch, 24]" in card
    assert "on 500 validation images, which the other half classifies" in card


def test_features_without_labelled_images_are_not_measured_in_8_bits(headless, tmp_path, capsys):
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    data = {"class_path": "distill_dynamics.data.UnlabelledFolder"}
    data["init_args"] = {"data_dir": str(tmp_path), "image_size": 28, "batch_size": 1}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    words = ["export", headless, "--out", tmp_path / "out", "--int8", "--data", tmp_path / "data.yaml"]
    line = refused(capsys, *words)
    assert "--int8 of a student without classes is measured by kNN on labelled validation images" in line


@pytest.mark.slow
def test_images_that_the_file_does_not_take_are_a_line(run, tmp_path, capsys):
    """A net of convolutions takes images of any size, and its ONNX file those of one."""
    net = Backbone("test_resnet", timm_kwargs={"in_chans": 1, "num_classes": 10})
    names = [f"c{k}" for k in range(10)]
    net.export_folder(tmp_path / "net", names)
    config = yaml.safe_load((run / "config.yaml").read_text())
    size = net.evaluation.image_size[0]
    for given in (size, 28):
        config["data"]["init_args"]["image_size"] = given
        (tmp_path / f"{given}.yaml").write_text(yaml.safe_dump({"data": config["data"]}))
    words = ["export", tmp_path / "net", "--out", tmp_path / "out", "--int8", "--data"]
    line = refused(capsys, *words, tmp_path / "28.yaml")
    assert line.endswith(f"--data gives images of 28 px, and model.onnx takes {size} x {size}\n")
    with pytest.warns(UserWarning, match="other names of classes, T-shirt"):
        main([*map(str, words), str(tmp_path / f"{size}.yaml")])


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["nowhere", "--out", "o"], "nowhere: there is no such folder"),
        ([".", "--out", "o"], "no student is there yet"),
        (["RUN", "--out", "taken"], "--out: taken exists"),
        (["RUN", "--out", "RUN/student/o"], "which is exported"),
        (["RUN", "--out", "o", "--data", "x.yaml"], "--data is for --int8"),
        (["RUN/student", "--out", "o", "--int8"], "config.yaml is missing, give --data CONFIG"),
        (["RUN", "--out", "o", "--push_to_hub", "a/b/c"], "--push_to_hub: "),
        (["RUN", "--out", "o", "--push_to_hub", "me/x"], "no token of the hub"),
        (["RUN", "--out", "o", "--onx"], "did you mean 'onnx'"),
    ],
)
def test_a_mistake_is_a_line(run, tmp_path, monkeypatch, capsys, words, right):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    Path("taken").mkdir()
    line = refused(capsys, "export", *(word.replace("RUN", str(run)) for word in words))
    assert right in line
    assert line.count("\n") == 1
    assert not Path("o").exists()


def test_without_the_extra_a_line_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distill_dynamics.models.onnx_files.find_spec", lambda name: None)
    line = refused(capsys, "export", run, "--out", tmp_path / "out", "--onnx")
    assert 'pip install "distill_dynamics[export]"' in line


def test_the_hub_gets_the_folder(run, tmp_path, monkeypatch, capsys):
    sent = {}
    client = create_autospec(huggingface_hub.HfApi, instance=True, endpoint="https://hub.example")
    client.create_repo.return_value.repo_id = "me/small"
    client.upload_folder.side_effect = lambda **to: sent.update(
        {to["repo_id"]: {file.name for file in Path(to["folder_path"]).iterdir()}}
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: client)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    main(["export", str(run), "--out", str(tmp_path / "out"), "--push_to_hub", "small"])
    client.create_repo.assert_called_once_with("small", private=True, exist_ok=True)
    assert sent == {"me/small": {"config.json", "model.safetensors", "README.md"}}
    assert "https://hub.example/me/small" in capsys.readouterr().out


def test_a_hub_that_refuses_leaves_the_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", _refuse)
    line = refused(capsys, "export", run, "--out", tmp_path / "out", "--push_to_hub", "me/small")
    assert "401" in line
    assert "hf upload me/small" in line
    assert (tmp_path / "out" / "model.safetensors").exists()


def _refuse(self, *args, **kwargs):
    raise OSError("401 Client Error: Unauthorized")
