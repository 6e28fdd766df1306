import math
import statistics
from pathlib import Path

import made
import numpy as np
import pytest
from scipy import stats

from distill_dynamics.dynamics.statistics import statistic
from distill_dynamics.report.records import Run
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import config_rows, evolution_rows, range_rows, results_rows
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.tables import accuracy_rows, curve_rows, gap_rows, signature_rows, spectrum_rows


def test_table_1(tmp_path):
    last = {"spectral": made.term(last=1)}
    rows = results_rows(
        made.study(
            tmp_path,
            soft0=(made.config(seed=0), [70.0, 77.0, 76.0]),
            last0=(made.config(last, seed=0), [60.0, 76.5, 76.4]),
            soft1=(made.config(seed=1), [70.0, 76.0, 75.5]),
            last1=(made.config(last, seed=1), [60.0, 75.9, 75.9]),
            soft2=(made.config(seed=2), [70.0, 76.5, 76.5]),
        )
    )
    sd = statistics.stdev([77.0, 76.0, 76.5]), statistics.stdev([76.5, 75.9])
    assert (f"{sd[0]:.2f}", f"{sd[1]:.2f}") == ("0.50", "0.42")
    assert rows == [
        ("method", "layers", "β", "seeds", "top-1 best", "top-1 last", "epochs", "runs"),
        ("teacher, cait", "", "", "", "90.00", "", "", ""),
        ("SoftKD", "–", "–", "3", "76.50 ± 0.50", "76.00 ± 0.50", "3", "soft0, soft1, soft2"),
        ("SpectralKD", "L 1", "0.2", "2", "76.20 ± 0.42", "76.15 ± 0.35", "3", "last0, last1"),
    ]


def test_two_runs_of_one_seed_are_not_two_seeds(tmp_path):
    runs = made.study(
        tmp_path, a=(made.config(), [77.0]), b=(made.config(), [77.5]), c=(made.config(seed=1), [76.0])
    )
    row = results_rows(runs)[2]
    assert row[3] == "2"
    assert row[4] == f"{(77.25 + 76) / 2:.2f} ± {statistics.stdev([77.25, 76.0]):.2f}"


def test_an_unfinished_run_pulls_no_mean_down(tmp_path):
    rows = results_rows(
        made.study(
            tmp_path,
            soft0=(made.config(), [70.0, 77.0, 76.0]),
            soft1=(made.config(seed=1), [50.0], {"ended": None}),
            last=(made.config({"a": made.term(last=1)}), [60.0, 76.5, 76.4]),
        )
    )
    assert [row[4] for row in rows[2:]] == ["77.00", "50.00", "76.50"]
    assert [row[6] for row in rows[2:]] == ["3", "1 of 3, not finished", "3"]


def test_only_runs_with_an_accuracy_make_a_table(tmp_path):
    assert results_rows(Study([])) == []
    assert results_rows(made.study(tmp_path, a=(made.config(), []))) == []
    curve = made.write_published(tmp_path / "Soft.csv", {"model_best": [1, 2, 3, 4]})
    assert results_rows(Study(load_runs([curve]))) == []


def test_settings_that_differ_a_column_a_run(tmp_path):
    a, b = made.config(), made.config({"t": made.term(last=1)}, seed=1)
    del b["trainer"]["enable_progress_bar"]  # absent is null
    assert config_rows(made.study(tmp_path, a=(a, [1.0]), b=(b, [1.0]))) == [
        ("setting", "a", "b"),
        ("seed_everything", "0", "1"),
        ("data.init_args.num_workers", "0", "1"),
        ("model.terms.t.loss.class_path", "–", "distill_dynamics.losses.SpectralKD"),
        ("model.terms.t.weight", "–", "0.2"),
        ("model.terms.t.first", "–", "0"),
        ("model.terms.t.last", "–", "1"),
    ]
    assert config_rows(made.study(tmp_path / "same", a=(a, [1.0]), b=(a, [1.0]))) == []


def test_runs_that_differ_by_seed_and_machine_share_a_column_of_settings(tmp_path):
    runs = {f"a{seed}": (made.config(seed=seed), [1.0]) for seed in (2, 0, 1)}
    runs["b"] = (made.config(seed=2, alpha=0.5), [1.0])
    assert config_rows(made.study(tmp_path, **runs)) == [
        ("setting", "a2, a0 and a1", "b"),
        ("seed_everything", "2, 0, 1", "2"),
        ("model.alpha", "0.9", "0.5"),
        ("data.init_args.num_workers", "2, 0, 1", "2"),
    ]


def test_accuracies():
    rows = [{"epoch": 0.0, "teacher/acc1": 90.456, "teacher/acc5": 99.5}]
    rows += [
        {"epoch": n, "val/acc1": top1, "val/acc5": 95.0}
        for n, top1 in ((1.0, 80.0), (2.0, 80.0), (3.0, 79.0))
    ]
    assert accuracy_rows(rows) == [
        ("accuracy (%)", "top-1", "top-5", "epoch"),
        ("teacher", "90.46", "99.50", ""),
        ("student, best", "80.00", "95.00", "1"),
        ("student, last", "79.00", "95.00", "3"),
    ]
    assert accuracy_rows([]) == []


def test_signatures():
    named = [
        ("u", made.profile(0, made.U)),
        ("falling", made.profile(0, made.FALLING)),
        ("one", made.profile(0, made.U, images=1)),
        ("none", made.profile(0, made.U, images=0)),
    ]
    rows = signature_rows(named)
    assert [row[0] for row in rows[1:]] == ["u", "falling", "one", "none"]
    assert [row[4] for row in rows[1:]] == ["U", "no U", "unknown: one image", "unknown: no images"]
    assert rows[1][1] == "3"  # in all resamples
    assert rows[1][2].startswith("0.400 ± 0.00")
    assert rows[1][3].startswith("0.250 ± 0.00")
    assert rows[2][3] == "0.000"
    assert rows[3][1:4] == rows[4][1:4] == ("3", "0.400", "0.250")
    assert signature_rows([]) == []


def test_the_magnitude_beside_the_entropy():
    agreeing = made.profile(0, made.U, magnitude=[4.0, 3.0, 1.0, 2.0])
    agreeing.curves["magnitude"] *= np.random.default_rng(0).uniform(0.99, 1.01, (4, 1))
    unknown = made.profile(0, made.U, images=0, magnitude=[np.nan] * 4)
    rows = signature_rows([("too", agreeing), ("not", made.profile(0, made.U)), ("unknown", unknown)])
    assert [row[5] for row in rows[1:]] == ["lowest at 3, a U too", "lowest at 1", "–"]


def test_bootstrap_intervals_of_both_sides():
    rng = np.random.default_rng(5)
    profile = made.profile(0, made.U, images=12)
    profile.curves["entropy"] = profile.entropy_images + rng.normal(0, 0.1, (12, 4))
    profile.means["entropy"] = profile.entropy_images.mean(0)
    (_, row) = signature_rows([("r", profile)], bootstrap=True)
    sides = profile.entropy_images[:, [0, 3]] - profile.entropy_images[:, [2]]
    for cell, side in zip(row[2:4], sides.T, strict=True):
        found = stats.bootstrap((side,), np.mean, method="percentile", n_resamples=20_000, rng=rng)
        low, high = map(float, cell.split("(")[1].rstrip(")").split(" to "))
        np.testing.assert_allclose([low, high], found.confidence_interval, atol=0.012)
        assert cell.startswith(f"{side.mean():.3f} (")


def test_what_is_not_a_number_is_missing_and_never_a_block():
    half = made.profile(3, [4.4, np.nan, 4.0, 4.25])
    (_, row) = signature_rows([("half", half)])
    assert row == ("half", "–", "–", "–", "unknown: not measured", "–")
    teacher = made.profile(None, made.TEACHER, model="cait")
    (_, row) = gap_rows(RunProfiles([half], teacher, None))
    assert (row[1], row[2], row[5]) == ("–", "–", "–")
    run = Run("r", "r", Path(), "fit", RunProfiles([made.profile(1, made.U), half], None, None))
    assert evolution_rows([run]) == []


def test_an_accuracy_that_is_not_a_number_counts_for_nothing(tmp_path):
    rows = made.metrics(70.0, 80.0, 79.0, math.nan, teacher=math.nan)
    assert [row[:2] for row in accuracy_rows(rows)[1:]] == [
        ("student, best", "80.00"),
        ("student, last", "79.00"),
    ]
    study = Study(load_runs([made.write_run(tmp_path / "r", rows)]))
    assert [row[4:6] for row in results_rows(study)[1:]] == [("80.00", "79.00")]
    none = made.write_run(tmp_path / "none", made.metrics(math.nan))
    assert results_rows(Study(load_runs([none]))) == []


def test_averaged_weights_have_rows_and_a_column_of_their_own(tmp_path):
    rows = made.metrics(70.0, 80.0, 79.0)
    for row, top1 in zip(rows[1:], (60.0, 81.0, 82.5), strict=True):
        row["val/acc1_ema"] = top1
    assert accuracy_rows(rows)[2:] == [
        ("student, best", "80.00", "97.00", "2"),
        ("student, last", "79.00", "98.00", "3"),
        ("EMA, best", "82.50", "–", "3"),
        ("EMA, last", "82.50", "–", "3"),
    ]
    conf = made.config()
    conf["trainer"]["callbacks"] = [{"class_path": "distill_dynamics.callbacks.EMA"}]
    paths = [made.write_run(tmp_path / "ema", rows, conf), made.write_run(tmp_path / "raw")]
    last = made.config({"t": made.term(last=1)})
    paths.append(made.write_run(tmp_path / "last", made.metrics(70.0, 78.0), last))
    header, _, soft, spectral = results_rows(Study(load_runs(paths)))
    # EMA changes nothing of the training: "ema" and "raw" are runs of one method.
    assert header[4:7] == ("top-1 best", "top-1 last", "EMA best")
    assert soft[4:7] == ("80.00", "79.00", "82.50")
    assert spectral[4:7] == ("78.00", "78.00", "–")


def test_spectra_and_massive_activations():
    k = np.arange(16)
    low_pass = 1 / (1 + np.minimum(k, 16 - k)) ** 2
    spectrum = [np.full(16, 0.1), low_pass, np.full(16, 0.5)]
    errors = [np.full(16, 1e-6)] * 3
    phases = made.profile(0, [3.0, 1.0, 2.0], spectrum=spectrum, spectrum_se=errors)
    unknown = made.profile(0, [3.0, 1.0, 2.0], images=0, spectrum=[[]] * 3, spectrum_se=[[]] * 3)
    header, row = spectrum_rows([("phases", phases), ("unknown", unknown)])
    power = low_pass[1:9] ** 2
    flatness = math.exp(np.log(power).mean()) / power.mean()
    low, high = (100 * power[band].sum() / power.sum() for band in (slice(0, 2), slice(5, 8)))
    assert len(header) == len(row) == 9
    assert row[:4] == ("phases", "1.000", f"{flatness:.3f}", "1.000")
    # k = 1, 2 of 16 are at or below a sixth, k = 6, 7, 8 above a third.
    assert row[4:7] == ("25, 38", f"{low:.0f}, {high:.0f}", "25, 38")
    assert row[7:] == ("yes", "45 at block 2, channel 3")


def test_a_curve_in_a_few_numbers():
    ranks = {"effective_rank": [9.123, 3.0, 4.0, 6.5], "errors": {"effective_rank": [0.5, 0.25, 0.1, np.nan]}}
    named = [("new", made.profile(1, made.U, **ranks)), ("old", made.profile(1, made.U))]
    assert curve_rows(named, statistic("effective_rank")) == [
        ("effective rank", "first block", "last block", "lowest", "highest"),
        ("new", "9.12 ± 0.50", "6.5", "3 ± 0.25 at block 2", "9.12 ± 0.50 at block 1"),
    ]
    assert curve_rows(named[1:], statistic("effective_rank")) == []


def test_distance_to_the_teacher():
    student = made.profile(3, [1.0, 2.0, 3.0], magnitude=[2.0, 2.0, 2.0])
    teacher = made.profile(None, [2.0, 2.0, 2.0], magnitude=[1.0, 1.0, 1.0])
    rows = gap_rows(RunProfiles([student], teacher, None))
    distance = f"{math.sqrt(2 / 3):.3f}"
    assert rows[1:] == [("student, epoch 3", distance, distance, "1.000", "0.000", "0.00")]
    assert gap_rows(RunProfiles([student], None, None)) == []


def test_evolution(tmp_path):
    rows = {f"checkpoint_epoch_{epoch}": values for epoch, values in {
        10: [3.0, 2.5, 1.0], 20: [2.5, 2.0, 0.5], 30: [2.0, 0.4, 0.5], 40: [1.0, 0.5, 2.0],
    }.items()}  # fmt: skip
    run = load_runs([made.write_published(tmp_path / "Last.csv", rows, layers=3)])
    header, row = evolution_rows(run)
    assert dict(zip(header, row, strict=True)) == {
        "entropy over epochs": "Last",
        "epochs": "10 to 40",
        "lowest block": "3 → 2",
        "first block (bits)": "-2.00",
        "last block (bits)": "+1.00",
        "last block lowest until": "20",
        "rises from": "20",
        "rebound (bits)": "1.50",
        "U since": "–",
    }
    # As with the images behind them: all of them moved alike.
    probes = {f"student_epoch_{e:04d}": made.profile(e, [3.0, 2.5, last]) for e, last in ((1, 1.0), (2, 2.0))}
    (run,) = load_runs([made.write_run(tmp_path / "r", **probes)])
    assert evolution_rows([run])[1][3:5] == ("0.00", "+1.00")
    one = made.write_published(tmp_path / "One.csv", {"checkpoint_epoch_1": [1, 2, 3]}, layers=3)
    assert evolution_rows(load_runs([one])) == []


def over_ranges(folder, label, images=8, **readings):
    """Cells of the row of one model, from its curves by range."""
    curves = []
    for number, (name, (curve, changed)) in enumerate(readings.items()):
        values = np.asarray(curve) + np.random.default_rng(number).normal(0, 0.2, (images, len(curve)))
        values += np.asarray(curve) - values.mean(0)
        mode = {"given": "explicit"}.get(name, name)
        content = made.profile(None, curve, images=images, entropy_images=values, range_mode=mode, **changed)
        curves.append((label, name, None, False, content))
    rows = range_rows(load_runs([made.write_analysis(folder, curves)]))
    return rows[1] if rows else None


def test_a_row_says_what_each_range_shows_of_a_model(tmp_path):
    magnitude = [8.0, 2.0, 1.0, 4.0]
    tied = [6.0, 4.0, 3.0, 5.0], {"magnitude": magnitude}  # 3 + log2 of the magnitude
    free = made.FALLING, {"magnitude": magnitude}
    cut = [3.0, 2.0, 1.0, 2.5], {"magnitude": magnitude, "clipped": [0.5, 0.1, 0, 0.2]}
    row = over_ranges(tmp_path / "out", "cait", **{"global": tied, "layer": free, "given": cut})
    r = stats.pearsonr(made.FALLING, np.log2(magnitude)).statistic
    assert row[0] == "cait"
    assert row[1].startswith("3 (U), r = 1.00")
    assert f"(no U), r = {r:.2f}" in row[2]
    assert row[3].endswith(", 20.0 % outside")
    assert over_ranges(tmp_path / "alone", "cait", **{"global": tied}) is None


@pytest.mark.parametrize(
    ("one", "other", "images", "verdict"),
    [
        # Blocks 2 and 3 are level within the noise: neither another block nor the same.
        ([4.5, 4.01, 4.0, 4.5], [5.5, 5.0, 5.01, 5.5], 8, "not certain"),
        ([4.5, 4.01, 4.0, 4.5], [5.5, 5.01, 5.0, 5.5], 8, "not certain"),
        ([4.5, 2.0, 4.0, 4.5], [5.5, 5.0, 3.0, 5.5], 8, "the block differs"),
        ([4.5, 4.2, 3.0, 4.5], [5.5, 5.2, 4.0, 5.5], 8, "same block and shape"),
        ([4.5, 4.2, 3.0, 4.5], [5.5, 5.2, 3.0, 3.01], 8, "a U in some ranges only"),
        ([4.5, 4.2, 3.0, 4.5], [5.5, 5.2, 3.0, 2.0], 1, "too few images to tell"),
    ],
)
def test_what_the_range_decides_is_claimed_beyond_the_noise_alone(tmp_path, one, other, images, verdict):
    row = over_ranges(tmp_path / "out", "x", images, **{"global": (one, {}), "layer": (other, {})})
    assert row[-1] == verdict
    assert (" ± " in row[1]) is (verdict == "not certain")  # else no resample has another one


def test_a_model_of_its_own_in_each_range_has_no_row(tmp_path):
    curves = [
        ("a", "global", None, False, made.profile(None, made.U)),
        ("b", "layer", None, False, made.profile(None, made.U)),
    ]
    assert range_rows(load_runs([made.write_analysis(tmp_path, curves)])) == []
