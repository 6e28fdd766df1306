"""Each published method's recipe trains from the command line: online, from a cache, with the page made."""

import pytest
import yaml
from conftest import ROOT, blank_real_vit
from test_fit import rows

from distill_dynamics.cli.main import main
from distill_dynamics.losses import __all__ as names

METHODS = sorted((ROOT / "configs" / "methods").glob("*.yaml"))
LIVE = {"attention"}
"""Of which a cache holds nothing."""

TEACHERS = {"class_token": {"model__teacher__name": "deit_tiny_patch16_224"}}
"""What a recipe asks of its teacher that the tests' CaiT has not."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model(path):
    return yaml.safe_load(path.read_text())["model"]


@pytest.mark.slow
@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_recipe_trains_online_and_from_a_cache(path, experiment, tmp_path, monkeypatch):
    if path.stem == "two_teachers":
        blank_real_vit(tmp_path, monkeypatch)
    deep = {f"model__{role}__timm_kwargs__depth": 8 for role in ("student", "teacher")}
    config = str(experiment(model__terms={}, **deep, **TEACHERS.get(path.stem, {})))
    views = ["--data.init_args.views", "2"]
    base = ["--config", config, "--config", str(path), *views]
    main(["fit", *base, "--name", "online"])
    assert "<html" in (tmp_path / "runs" / "online" / "report.html").read_text()
    monkeypatch.setattr("distill_dynamics.cli.fit_summary.write_report", lambda *args: None)  # once is enough
    runs = ["online"]
    if path.stem not in LIVE:
        main(["cache-teacher", *base, "--out", str(tmp_path / "cache")])
        main(["fit", *base, "--name", "cached", "--model.teacher_cache", str(tmp_path / "cache")])
        runs.append("cached")
    losses = []
    for name in runs:
        run = tmp_path / "runs" / name
        last = rows(run)[-1]
        assert last["epoch"] == "2"
        losses.append({key: float(v) for key, v in last.items() if key.startswith("train/loss") and v})
    expected = {f"train/loss_{name}" for name in model(path)["terms"]}
    assert expected <= losses[0].keys()
    if len(losses) == 2 and path.stem not in ("manifold", "vitkd", "vitkd_nkd"):  # whose draws are others
        near = 0.1 if path.stem == "dist" else 0.02  # correlations of a teacher that has learnt nothing
        for key, value in losses[0].items():
            assert losses[1][key] == pytest.approx(value, rel=near), key


def test_every_loss_has_a_recipe():
    terms = [term for path in METHODS for term in model(path)["terms"].values()]
    used = {term["loss"]["class_path"].rpartition(".")[2] for term in terms}
    losses = {name for name in names if name[0].isupper()} - {"DistilledSoftKD", "SoftKD"}
    assert losses <= used


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_recipe_is_a_lab_record(path):
    text = path.read_text()
    assert f"--config configs/methods/{path.name}" in text
    assert "\n# Paper  " in text
