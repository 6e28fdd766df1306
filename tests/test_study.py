"""The study: which runs are made and kept, what is computed of them, and that the write-up says just that."""

import csv
import importlib
import importlib.util
import re
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import ROOT
from matplotlib.testing.compare import compare_images
from report.made import profile
from scipy import stats

from distill_dynamics.dynamics import Profile

STUDY = ROOT / "notebooks" / "study"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(STUDY)
    spec = importlib.util.spec_from_file_location("study_run", STUDY / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_run", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path / "study")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_every_row_is_run_on_its_seeds_and_claims_come_first_seed_by_seed(study):
    made = list(study.runs([*study.ROWS]))
    seeds = Counter(run.row for run in made)
    assert seeds == {name: row.seeds for name, row in study.ROWS.items()}
    assert len(set(made)) == len(made)
    claims = {name for name, row in study.ROWS.items() if row.seeds == 5}
    assert {(run.row, run.seed) for run in made[: len(claims)]} == {(row, 0) for row in claims}
    assert {run.row for run in made[5 * len(claims) :]} == set(study.ROWS) - claims

    configs = {path.stem for path in (ROOT / "configs" / "fashion_mnist").glob("*.yaml")}
    rows = {name for name in configs if name not in ("base", "cache") and not name.startswith("teacher")}
    assert {row.removesuffix("_online") for row in seeds} == rows


def fake_commands(study, monkeypatch, fails=()):
    """Commands that leave the files of a run at once; what they were."""
    asked = []

    def command(log, verb, configs, *options):
        asked.append((log, verb, *map(str, options)))
        if log in fails:
            raise study.Failed(f"{log}: no space left")
        folder = study.RUNS / log
        if verb == "fit":
            folder.mkdir(parents=True)
            for file in ("config.yaml", "run.json", "metrics.csv"):
                (folder / file).write_text(f"{file} of {log}")
            (folder / "dynamics").mkdir()
            for stem in ("teacher", "student_epoch_0011", "student_epoch_0012", "student_best"):
                (folder / "dynamics" / f"{stem}.npz").touch()
        if verb == "analyze":
            out = options[options.index("--out") + 1]
            out.mkdir(parents=True)
            for file in ("curves.csv", "table.csv", "report.html"):
                (out / file).write_text(file)
            words = [*options, "--value-range"]
            for value_range in words[words.index("--value-range") + 1 : -1]:
                profile = out / "profiles" / "deit" / value_range / "model.npz"
                profile.parent.mkdir(parents=True)
                profile.touch()

    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr(study, "make_teacher", lambda name: None)
    return asked


def run(study, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["run.py", *args])
    with pytest.raises(SystemExit) as ended:
        study.main()
    return ended.value.code


def test_what_is_kept_is_not_made_again_and_a_failure_stops_no_other(study, monkeypatch, capsys, tmp_path):
    asked = fake_commands(study, monkeypatch, fails=["softkd-1"])
    assert run(study, monkeypatch, "--only", "softkd", "none", "--workers", "1") == 1
    assert "softkd-1: no space left" in capsys.readouterr().out
    assert len([words for words in asked if words[1] == "cache-teacher"]) == 1
    fits = {log: words for log, verb, *words in asked if verb == "fit"}
    assert len(fits) == 10
    assert "--model.teacher_cache" in fits["softkd-0"]
    assert "--model.teacher_cache" not in fits["none-0"]

    kept = tmp_path / "results"
    assert {path.name for path in kept.iterdir()} == set(fits) - {"softkd-1"}
    files = {str(path.relative_to(kept / "softkd-2")) for path in (kept / "softkd-2").rglob("*.*")}
    profiles = {f"dynamics/{stem}.npz" for stem in ("teacher", "student_epoch_0012", "student_best")}
    analyses = {f"evolution/{file}.csv" for file in ("curves", "table")}
    analyses |= {f"ranges/{value_range}.npz" for value_range in ("global", "layer", "scaled")}
    assert files == {"config.yaml", "run.json", "metrics.csv", *profiles, *analyses}
    assert (kept / "softkd-2" / "metrics.csv").read_text() == "metrics.csv of softkd-2"

    again = fake_commands(study, monkeypatch)
    assert run(study, monkeypatch, "--only", "softkd", "none") == 0
    assert {log for log, verb, *_ in again if verb == "fit"} == {"softkd-1"}
    assert "9 runs are there, 1 to make" in capsys.readouterr().out


def test_a_teacher_that_fails_stops_its_own_runs_alone(study, monkeypatch, capsys, tmp_path):
    fake_commands(study, monkeypatch)

    def make_teacher(name):
        if name == "cait24":
            raise study.Failed("out of memory")

    monkeypatch.setattr(study, "make_teacher", make_teacher)
    assert run(study, monkeypatch, "--only", "softkd", "none", "softkd_resnet") == 1
    assert "no run with teacher cait24: out of memory" in capsys.readouterr().out
    kept = {path.name.rpartition("-")[0] for path in (tmp_path / "results").iterdir()}
    assert kept == {"none", "softkd_resnet"}


def test_a_control_is_its_teachers_config_and_its_own(study, monkeypatch, tmp_path):
    asked = fake_commands(study, monkeypatch)
    configs = []
    monkeypatch.setattr(
        study, "fit", lambda name, files: (configs.append(files), study.command(name, "fit", files))
    )
    assert run(study, monkeypatch, "--only", "teacher_cait24_std035") == 0
    assert configs == [["teacher_cait24", "teacher_cait24_std035"]]
    assert {verb for _, verb, *_ in asked} == {"fit", "analyze"}  # no cache: it teaches no one
    assert (tmp_path / "results" / "teacher_cait24_std035" / "ranges" / "scaled.npz").exists()


# --- tables and write-up --------------------------------------------------------------------------------


@pytest.fixture
def scripts(monkeypatch):
    """The scripts by their names, as they import one another."""
    monkeypatch.syspath_prepend(STUDY)
    for name in [path.stem for path in STUDY.glob("*.py")]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


SEEDS = {"softkd": range(5), "spectralkd_l1": range(5), "spectralkd_f1": (0, 1, 3, 4)}
BLOCKS, EPOCHS = 4, 20


@pytest.fixture
def made(scripts, monkeypatch, tmp_path):
    """What makes the tables, of made-up results: top-1, losses, curves, cosines."""
    monkeypatch.setattr(scripts("evidence"), "RESULTS", tmp_path)
    makers = map(scripts, ("evidence", "accuracies", "curves", "evolution"))
    tables = SimpleNamespace(**{name: value for maker in makers for name, value in vars(maker).items()})
    rng = np.random.default_rng(0)
    for row, seeds in SEEDS.items():
        for seed in seeds:
            lines = []
            for epoch in range(EPOCHS + 1):
                scale = np.array([0.0, -2, -1, 1]) + rng.normal(size=BLOCKS) / 10
                entropy = 5 + 0.8 * scale + rng.normal(size=BLOCKS) / 50
                # A deep U at the end, and one too shallow to count after the first epoch.
                line = {"epoch": epoch, "dynamics/student/signature/u_shaped": float(epoch in (1, EPOCHS))}
                line["dynamics/student/signature/depth"] = 0.1 if epoch == EPOCHS else 0.03
                for block in range(BLOCKS):
                    line[f"dynamics/student/magnitude/block_{block + 1:02d}"] = 2 ** scale[block]
                    line[f"dynamics/student/entropy/block_{block + 1:02d}"] = entropy[block]
                    if row != "softkd":
                        line[f"dynamics/conflict/spectral/block_{block + 1:02d}"] = rng.uniform(-1, 1)
                line["val/acc1"] = 80 + epoch + rng.normal() if epoch else ""
                line["val/loss"] = 0.4 + rng.normal() / 100
                line |= {"train/loss_ce": 1.0, "train/loss_kd": 0.5, "train/loss": 0.55}
                if row != "softkd":
                    line["train/loss_kd"] = 0.4 + rng.uniform() / 100
                    line["train/loss"] = 0.1 + 0.9 * line["train/loss_kd"] + 0.2 * 0.7  # weight times term
                lines.append(line)
            (tmp_path / f"{row}-{seed}").mkdir()
            terms = {} if row == "softkd" else {"spectral": {"weight": 0.2}}
            config = {"model": {"alpha": 0.9, "terms": terms}}
            (tmp_path / f"{row}-{seed}" / "config.yaml").write_text(yaml.safe_dump(config))
            with (tmp_path / f"{row}-{seed}" / "metrics.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
                writer.writeheader()
                writer.writerows(lines)
    # What an interrupted run of the runner leaves: no result.
    (tmp_path / ".softkd-9").mkdir()
    (tmp_path / ".softkd-9" / "metrics.csv").write_text("epoch,val/acc1\n1,0\n")
    return tables


def of(tables, row, column, epoch=EPOCHS, seeds=None):
    return np.array([tables.results()[row][seed].epochs[epoch][column] for seed in seeds or SEEDS[row]])


def test_a_difference_is_of_equal_seeds_with_the_interval_of_the_paired_t_test(made):
    found = {entry["name"]: entry for entry in made.accuracy()}
    assert list(found) == ["softkd", "spectralkd_f1", "spectralkd_l1"]
    assert "baseline" not in found["softkd"]
    p = []
    for row in ("spectralkd_f1", "spectralkd_l1"):
        seeds = SEEDS[row]
        test = stats.ttest_rel(*(of(made, r, "val/acc1", seeds=seeds) for r in (row, "softkd")))
        p.append(test.pvalue)
        low, high = test.confidence_interval(0.95)
        assert found[row]["pairs"] == len(seeds)
        assert found[row]["last_difference_low"] == pytest.approx(low)
        assert found[row]["last_difference_high"] == pytest.approx(high)
        losses = (of(made, r, "val/loss", seeds=seeds) for r in (row, "softkd"))
        low, high = stats.ttest_rel(*losses).confidence_interval(0.95)
        assert found[row]["loss_difference_low"] == pytest.approx(low)
        assert found[row]["loss_difference_high"] == pytest.approx(high)
        ratios = of(made, row, "train/loss_kd", seeds=seeds) / of(
            made, "softkd", "train/loss_kd", seeds=seeds
        )
        assert found[row]["kd_mean"] == pytest.approx(100 * ratios.mean() - 100)
    shares = 0.14 / of(made, "spectralkd_l1", "train/loss")
    assert found["spectralkd_l1"]["term"] == pytest.approx(100 * shares.mean())
    assert np.isnan(found["softkd"]["term"])
    assert found["spectralkd_l1"]["paper"] == pytest.approx(76.83 - 76.99)
    assert found["softkd"]["last_sd"] == pytest.approx(of(made, "softkd", "val/acc1").std(ddof=1))
    # By hand, of two: Benjamini and Hochberg double the smaller p, but for a q above the larger; Holm doubles
    # it, and the larger is no smaller.
    small, large = sorted(p)
    for name, corrected in (
        ("q", (min(2 * small, large), large)),
        ("holm", (min(1, 2 * small), max(min(1, 2 * small), large))),
    ):
        wanted = dict(zip((small, large), corrected, strict=True))
        assert [found[row][name] for row in ("spectralkd_f1", "spectralkd_l1")] == pytest.approx(
            [wanted[x] for x in p]
        )


def test_the_pooled_error_is_that_of_a_linear_model(made):
    groups = [of(made, row, "val/acc1") for row in SEEDS]
    # A column a row: what least squares leaves is the variance within rows.
    rows = np.repeat(np.eye(len(groups)), [len(group) for group in groups], axis=0)
    _, left, rank, _ = np.linalg.lstsq(rows, np.concatenate(groups))
    freedom = len(rows) - rank
    half = stats.t.ppf(0.975, freedom) * np.sqrt(left[0] / freedom * 2 / 5)
    assert made.known_to(made.last_top1, 5) == pytest.approx(half)
    entry = {entry["name"]: entry for entry in made.accuracy()}["spectralkd_l1"]
    assert entry["last_sure"] == int(abs(entry["last_difference_mean"]) > half)


def test_a_contrast_takes_the_seeds_that_all_its_rows_have(made):
    (entry,) = made.contrasts()  # the other rows are not there
    late, early = (
        of(made, row, "val/acc1", seeds=(0, 1, 3, 4)) for row in ("spectralkd_l1", "spectralkd_f1")
    )
    assert (entry["name"], entry["seeds"]) == ("SpectralKD L 1 minus F 1", 4)
    assert entry["points_mean"] == pytest.approx((late - early).mean())


def test_one_seed_has_no_interval(made):
    wanted = {"x_mean": 3, "x_low": np.nan, "x_high": np.nan}
    assert made.interval([3.0], "x_") == pytest.approx(wanted, nan_ok=True)


def test_shapes_tell_the_planted_curve(made):
    found = {entry["name"]: entry for entry in made.shapes()}
    entry = found[f"softkd global {EPOCHS}"]
    assert (entry["u"], entry["runs"], entry["ever_u"], entry["ever"]) == (5, 5, 5, 5 * EPOCHS)
    shallow = found["softkd global 1"]
    assert (shallow["u"], shallow["u_of_any_depth"], shallow["deepest"]) == (0, 5, 0.03)
    assert (found["softkd global 2"]["u"], found["softkd global 2"]["ever"]) == (0, 10)
    assert entry["lowest"] == entry["lowest_min"] == entry["lowest_max"] == 2
    curves = np.array([of(made, "softkd", f"dynamics/student/entropy/block_{b:02d}") for b in range(1, 5)])
    rises = curves[3] - (curves[1] + curves[2]) / 2  # of four blocks the second and third are the middle
    assert entry["rise_mean"] == pytest.approx(rises.mean())
    low, high = stats.ttest_1samp(rises, 0).confidence_interval(0.95)
    assert (entry["rise_low"], entry["rise_high"]) == pytest.approx((low, high))
    assert entry["fall_mean"] == pytest.approx((curves[0] - (curves[1] + curves[2]) / 2).mean())


def test_ranges_tell_what_scale_explains(made, tmp_path):
    rng = np.random.default_rng(0)
    magnitude = np.exp(rng.normal(size=(32, 6)))
    cait, control = "teacher_cait24", "teacher_cait24_std035"
    for row, seeds in ((cait, [None]), (control, [None]), ("softkd", range(3))):
        for seed in seeds:
            folder = tmp_path / (row if seed is None else f"{row}-{seed}")
            (folder / "ranges").mkdir(parents=True)
            (folder / "metrics.csv").write_text("epoch,val/acc1\n1,80\n") if seed is None else None
            for name, slope in (("global", 0.8), ("scaled", 0.0)):
                entropy = 4 + slope * np.log2(magnitude) + rng.normal(size=(32, 6)) / 20
                images = {"entropy_images": entropy, "magnitude_images": magnitude}
                profile(
                    None,
                    entropy.mean(axis=0),
                    32,
                    magnitude=magnitude.mean(axis=0),
                    range_mode=name,
                    **images,
                ).save(folder / "ranges" / f"{name}.npz")
    made.results.cache_clear()
    found = {entry["name"]: entry for entry in made.ranges()}
    assert set(found) == {
        f"{row} {name}" for row in (cait, control, "softkd") for name in ("global", "scaled")
    }
    for name in ("global", "scaled"):
        measured = Profile.load(tmp_path / "teacher_cait24" / "ranges" / f"{name}.npz")
        line = stats.linregress(np.log2(measured.magnitude), measured.entropy)
        assert found[f"teacher_cait24 {name}"]["r2_mean"] == pytest.approx(line.rvalue**2)
        assert found[f"teacher_cait24 {name}"]["slope_mean"] == pytest.approx(line.slope)
        # Over images: near the bootstrap that scipy does of the same mean.
        heights = measured.entropy_images[:, 0] - measured.entropy_images[:, 2:4].mean(axis=1)
        theirs = stats.bootstrap([heights], np.mean, method="percentile", rng=1).confidence_interval
        ours = [found[f"teacher_cait24 {name}"][f"fall_{end}"] for end in ("low", "high")]
        assert ours == pytest.approx(list(theirs), abs=0.1 * (theirs.high - theirs.low))
    (entry,) = made.larger_input()
    falls = [found[f"{row} global"]["fall_mean"] for row in (cait, control)]
    assert (entry["name"], entry["fall_mean"]) == ("teacher", pytest.approx(falls[0] - falls[1]))
    assert found["softkd scaled"]["runs"] == 3
    assert found["softkd scaled"]["slope_low"] < 0 < found["softkd scaled"]["slope_high"]


def test_ends_and_courses_are_paired_differences_at_each_epoch(made):
    pair, seeds = ("spectralkd_f1", "softkd"), SEEDS["spectralkd_f1"]

    def differences(column, epoch):
        aligned, base = (of(made, row, column, epoch, seeds) for row in pair)
        return aligned, base

    found = {entry["name"]: entry for entry in made.ends()}
    for epoch in (0, EPOCHS):
        test = stats.ttest_rel(*differences("dynamics/student/entropy/block_04", epoch))
        low, high = test.confidence_interval(0.95)
        entry = found[f"spectralkd_f1 {epoch}"]
        assert (entry["last_difference_low"], entry["last_difference_high"]) == pytest.approx((low, high))
        columns = [f"dynamics/student/magnitude/block_{block:02d}" for block in range(1, 5)]
        *others, last = (np.log2(of(made, "softkd", column, epoch)) for column in columns)
        assert found[f"softkd {epoch}"]["last_scale_mean"] == pytest.approx(last.mean())
        assert found[f"softkd {epoch}"]["others_scale_mean"] == pytest.approx(np.mean(others))

    courses = {entry["name"]: entry for entry in made.courses()}
    assert list(courses) == [f"spectralkd_l1 {epoch}" for epoch in range(1, EPOCHS + 1)]
    aligned, base = (of(made, row, "val/acc1", 2) for row in ("spectralkd_l1", "softkd"))
    entry = courses["spectralkd_l1 2"]
    low, high = stats.ttest_rel(aligned, base).confidence_interval(0.95)
    assert (entry["gain_low"], entry["gain_high"]) == pytest.approx((low, high))


def test_the_early_epochs_are_the_papers_without_the_warm_up(scripts):
    early = scripts("evolution").early_epochs
    assert [(early(last)[0], early(last)[-1]) for last in (12, 20, 60, 300)] == [
        (3, 3),
        (3, 6),
        (6, 18),
        (30, 90),
    ]


def test_evolution_is_read_at_its_epochs(made):
    def curve(row, block, epochs, measure="entropy", seeds=None):
        column = f"dynamics/student/{measure}/block_{block:02d}"
        return np.mean([of(made, row, column, epoch, seeds) for epoch in epochs], axis=0)

    found = {entry["name"]: entry for entry in made.evolution()}
    assert list(found) == ["softkd", "spectralkd_f1", "spectralkd_l1", "SpectralKD L 1 minus F 1"]
    entry, early = found["spectralkd_l1"], range(3, 7)
    late, base = (curve(row, 4, early) for row in ("spectralkd_l1", "softkd"))
    low, high = stats.ttest_rel(late, base).confidence_interval(0.95)
    assert (entry["last_low"], entry["last_high"]) == pytest.approx((low, high))
    for block, name in ((1, "first"), (4, "last")):
        changes = {
            row: curve(row, block, [EPOCHS]) - curve(row, block, [6]) for row in ("softkd", "spectralkd_l1")
        }
        assert entry[f"{name}_change_mean"] == pytest.approx(changes["spectralkd_l1"].mean())
        difference = (changes["spectralkd_l1"] - changes["softkd"]).mean()
        assert entry[f"{name}_change_difference_mean"] == pytest.approx(difference)
    scale = {
        block: np.log2(curve("spectralkd_l1", block, [EPOCHS], "magnitude"))
        - np.log2(curve("spectralkd_l1", block, [6], "magnitude"))
        for block in range(1, 5)
    }
    assert entry["last_scale_change_mean"] == pytest.approx(scale[4].mean())
    assert entry["others_scale_change_mean"] == pytest.approx(np.mean([scale[b] for b in (1, 2, 3)]))
    runs = made.results()["spectralkd_l1"].values()
    beside = [
        [np.array([c[-1] - c[:-1].mean() for e in range(3, EPOCHS + 1) for c in [read(run.curve(name, e))]])
         for name, read in (("magnitude", np.log2), ("entropy", np.array))]
        for run in runs
    ]  # fmt: skip
    assert entry["r2_mean"] == pytest.approx(np.mean([np.corrcoef(*pair)[0, 1] ** 2 for pair in beside]))
    shared = SEEDS["spectralkd_f1"]
    late, first = (curve(row, 4, early, seeds=shared) for row in ("spectralkd_l1", "spectralkd_f1"))
    assert found["SpectralKD L 1 minus F 1"]["last_mean"] == pytest.approx((late - first).mean())


def test_conflicts_are_means_over_blocks_and_trained_epochs(made):
    found = {entry["name"]: entry for entry in made.conflicts()}
    columns = [f"dynamics/conflict/spectral/block_{block:02d}" for block in range(1, BLOCKS + 1)]
    trained = range(1, EPOCHS + 1)
    cosines = np.array([[of(made, "spectralkd_l1", c, epoch) for c in columns] for epoch in trained])
    assert found["spectralkd_l1"]["cosine_mean"] == pytest.approx(cosines.mean())
    assert found["spectralkd_l1"]["last_mean"] == pytest.approx(cosines[:, -1].mean())
    assert found["spectralkd_l1 2"]["block_03"] == pytest.approx(cosines[1, 2].mean())
    assert not any(name.startswith("softkd") for name in found)


def test_rank_correlation_is_scipys_and_its_p_counts_permutations(scripts):
    evidence = scripts("evidence")
    rng = np.random.default_rng(0)
    known, final = rng.normal(size=(2, 3, 6))
    wanted = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(known, final, strict=True)])
    assert evidence.rank_correlation(known, final) == pytest.approx(wanted)
    # Many resamples at once, as the bootstrap has them.
    rows = rng.integers(6, size=(4, 6))
    one_by_one = [evidence.rank_correlation(known[:, r], final[:, r]) for r in rows]
    assert evidence.rank_correlation(known[:, rows], final[:, rows]) == pytest.approx(one_by_one)

    with pytest.raises(ValueError, match="not known"):
        evidence.rank_correlation(np.where(known > 1, np.nan, known), final)

    same = np.arange(5.0)[None]  # of 5! orders two have |rho| = 1
    assert evidence.permutation_p(same, same) == pytest.approx(2 / 120, rel=0.2)


@pytest.mark.slow  # all of it, from 89 runs
def test_the_committed_tables_are_those_of_the_committed_results(scripts, tmp_path):
    read, tables = scripts("evidence").read, scripts("tables")
    for table in tables.TABLES_MADE:
        tables.write(tmp_path, table.__name__, list(table()))
        again, committed = (read(d / f"{table.__name__}.csv") for d in (tmp_path, STUDY / "tables"))
        assert [list(entry) for entry in again] == [list(entry) for entry in committed]
        for one, other in zip(again, committed, strict=True):
            for column, text in one.items():
                assert alike(text, other[column]), (table.__name__, one["name"], column)


def alike(one, other):
    """The same text, or the same number but for the last digits."""
    try:
        return one == other or float(one) == pytest.approx(float(other), rel=1e-4, abs=1e-9)
    except ValueError:
        return False


def test_a_difference_without_a_q_is_written_too(scripts, monkeypatch):
    write_up = scripts("write_up")
    difference = {
        f"{which}_difference_{part}": number
        for which in ("last", "best", "loss")
        for part, number in (("mean", "0.5"), ("low", "-0.123"), ("high", "1.124"))
    }
    numbers = {f"{which}_{part}": "80" for which in ("last", "best") for part in ("mean", "sd")}
    numbers |= {
        "last_sure": "1",
        "loss_sure": "0",
        "q": "",
        "holm": "",
        "kd_mean": "-13.8",
        "kd_low": "-16.5",
        "kd_high": "-11",
    }
    entry = {"seeds": "2", "baseline": "softkd", "paper": "-0.27", **numbers, **difference}
    monkeypatch.setattr(scripts("cells"), "table", lambda name: {"none": entry})
    found = write_up.cells("accuracy")
    line = (
        "| 2 | 80.00 ± 80.00 | **+0.50 (−0.12 to +1.12)** | −0.27 |  |  | +500.0 (−123.0 to +1124.0) | −14 |"
    )
    assert line in write_up.accuracy(found)
    assert f"{found['none']['last_difference']:.1f}" == "0.5 (−0.1 to 1.1)"
    expected = "80.00 ± 80.00 % top-1, 2 seeds; +0.50 (−0.12 to +1.12) points from softkd.yaml's"
    with pytest.raises(ValueError, match="no line '# Expected'"):
        write_up.with_expected("# Row\nmodel:\n", found["none"])
    config = write_up.with_expected("# Row\n# Expected    less\nmodel:\n", found["none"])
    assert config == f"# Row\n# Expected    {expected} (notebooks/study/README.md)\nmodel:\n"

    entry |= {"last_difference_low": "", "last_difference_high": ""}  # of one seed
    assert f"{write_up.cells('accuracy')['none']['last_difference']:+.2f}" == "+0.50"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.3, "above"), (-0.3, -0.1, "below"), (-0.1, 0.3, "around")]
)
def test_a_sentence_cannot_say_other_than_its_interval(scripts, low, high, said):
    write_up = scripts("cells")
    interval = write_up.Interval(*map(write_up.Cell, ((low + high) / 2, low, high)))
    assert f"helps{interval:{said}}." == "helps."
    for other in {"above", "below", "around"} - {said}:
        with pytest.raises(ValueError, match=f"{other} 0"):
            f"{interval:{other}}"
    where = {"above": "over 0", "below": "under 0", "around": "under 0.2"}
    assert f"helps{interval.mean:{where[said]}}." == "helps."
    with pytest.raises(ValueError, match="a sentence has"):
        f"{interval.mean:over 0.3}"
    assert f"{interval:excludes 0.5}{interval:includes {low}}" == ""
    if said != "around":
        assert f"{interval:{said} .1f}" == "0.2 (0.1 to 0.3)"
    with pytest.raises(ValueError, match=r"(above|below) 0"):
        f"{interval:{'below' if said != 'below' else 'above'} .1f}"
    assert f"{write_up.Cell(-0.25):size .2f}" == "0.25"
    for wrong in ("includes 0.5", f"excludes {low}"):
        with pytest.raises(ValueError, match=wrong):
            f"{interval:{wrong}}"
    unknown = write_up.Interval(*map(write_up.Cell, (0.2, np.nan, np.nan)))
    with pytest.raises(ValueError, match="around 0"):
        f"{unknown:around}"


def test_the_figures_are_those_of_the_tables(scripts, tmp_path):
    drawn = {path.name for path in scripts("figures").draw(tmp_path)}
    assert drawn == {path.name for path in (STUDY / "figures").iterdir()}
    for name in drawn:
        assert compare_images(STUDY / "figures" / name, tmp_path / name, tol=1) is None  # of 255


NAMES = "|".join(
    (
        r"CIFAR-10|Tables? \d|Sections? \d(\.\d)?|Figures? \d+( to \d)?|^\d\. |[FL] \d\b|[Ll]og2",
        r"AAAI 2026|arXiv:[\d.]+|[Tt]op-1|95 %|q < 0\.05|below 0\.05|ViT-S/14|DINOv2|10⁻³",
    )
)


def prose(template):
    """The text without cells, code, links and headings, and without the names that have a digit in them."""
    left = re.sub(r"```.*?```", "", template, flags=re.S)
    left = re.sub(r"\{[^}]*\}|`[^`]*`|\]\([^)]*\)|^#[^\n]*$|^    [^\n]*$", "", left, flags=re.M)
    return re.sub(NAMES, "", left, flags=re.M)


def test_every_number_of_the_write_up_is_a_cell_of_a_table(scripts):
    template = (STUDY / "README.template.md").read_text(encoding="utf-8")
    write_up = scripts("write_up")
    assert write_up.filled(template) == (STUDY / "README.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert write_up.with_headline(readme) == readme
    configs = dict(write_up.configs())
    assert {path.stem for path in configs} == set(write_up.cells("accuracy")) - {"softkd_online"}
    for path, config in configs.items():
        assert config == path.read_text(encoding="utf-8")
    assert re.findall(r"\S*\d\S*", prose(template)) == []
    page = re.sub(r"<details>.*?</details>", "", write_up.filled(template), flags=re.S)
    assert sum(bool(re.search(r"\w", word)) for word in page.split()) <= 3500
    assert re.findall(r"\S*\d\S*", prose(template + "\nIt costs 0.31 points in 5 seeds.")) == ["0.31", "5"]
