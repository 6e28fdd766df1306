"""What was tried: methods by their settings, and each beside its baseline."""

import math
import statistics

import made
import numpy as np
import pytest
from scipy import stats

from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import contrast_rows, gain_rows, over_plain_rows

LAST = {"spectral": made.term(last=1)}
PLAIN = {"teacher": None, "alpha": None}


def described(tmp_path, conf):
    (method,) = made.study(tmp_path, r=(conf, [70.0])).methods
    return method.title, method.layers, method.weight


@pytest.mark.parametrize(
    "data",
    [
        {"class_path": "x.Data", "init_args": {"labels": False}},
        {"class_path": "distill_dynamics.data.UnlabelledFolder", "init_args": {"data_dir": "x"}},
    ],
)
def test_training_without_labels_is_called_that(tmp_path, data):
    conf = made.config({"token": made.term("TokenKD", last=1)}, alpha=None) | {"data": data}
    assert described(tmp_path, conf) == ("TokenKD without labels", "L 1", "0.2")


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({}, ("SoftKD", "", "")),
        ({"a": made.term(first=2, last=6)}, ("SpectralKD", "F 2, L 6", "0.2")),
        ({"a": made.term(last=1, weight=0.1)}, ("SpectralKD", "L 1", "0.1")),
        (
            {"a": made.term("ProjectorKD", first=1, trainable=False)},
            ("ProjectorKD [trainable: false]", "F 1", "0.2"),
        ),
        ({"a": made.term(pairs=[[3, 5], [-1, -1]])}, ("SpectralKD", "pairs 3-5 -1--1", "0.2")),
        ({"a": made.term(pairs="all")}, ("SpectralKD", "all", "0.2")),
        (
            {"a": made.term(first=1), "b": made.term("ProjectorKD", 0.5, last=1)},
            ("SpectralKD + ProjectorKD", "F 1; L 1", "0.2; 0.5"),
        ),
        (
            {"near": made.term(first=1), "far": made.term(last=1)},
            ("SpectralKD (near) + SpectralKD (far)", "F 1; L 1", "0.2; 0.2"),
        ),
        ({"ce": None}, ("SoftKD without cross-entropy", "", "")),
        ({"kd": made.term("SoftKD", weight=0.9, temperature=1.0)}, ("SoftKD", "", "")),
        ({"kd": made.term("SoftKD", weight=0.9, temperature=2.0)}, None),
        (
            {"ce": made.term("CrossEntropy", weight=0.1, label_smoothing=0.1), "a": made.term(last=1)},
            ("SpectralKD", "L 1", "0.2"),
        ),
        ({"kd": None, "a": made.term(last=1)}, ("SpectralKD without SoftKD", "L 1", "0.2")),
        (
            {
                "kd": {"loss": {"class_path": "mine.DKD"}, "weight": 1.0},
                "a": made.term(
                    weight={"class_path": "some.Until", "init_args": {"start": 0.2, "end": 0.5}}, last=1
                ),
            },
            ("DKD + SpectralKD without SoftKD", "L 1", "1; Until [start: 0.2, end: 0.5]"),
        ),
        (
            {"a": {**made.term(pairs="depth"), "gate": {"class_path": "some.PhaseGate"}, "budget": 0.1}},
            ("SpectralKD", "depth", "0.2, PhaseGate, budget 0.1"),
        ),
    ],
)
def test_a_method_is_named_as_in_the_paper_s_table(tmp_path, terms, expected):
    found = described(tmp_path, made.config(terms))
    assert found == expected if expected else found[0] != "SoftKD"


def test_what_is_gained_over_plain_training_stands_beside_what_is_gained_over_softkd(tmp_path):
    last, soft, plain = np.array([[80.0, 81.5, 81.0], [79.0, 80.0, 80.5], [77.0, 79.0, 78.5]])
    runs = made.seeds("last", LAST, *last) | made.seeds("soft", {}, *soft)
    runs |= {
        f"plain{seed}": (made.config(seed=seed, **PLAIN), [10.0, value, value])
        for seed, value in enumerate(plain)
    }
    study = made.study(tmp_path / "all", **runs)
    for name, values in {"SpectralKD L 1": last, "SoftKD": soft}.items():
        (row,) = (row for row in over_plain_rows(study) if row[0] == name)
        pairs = values - plain
        low, high = stats.t.interval(0.95, 2, pairs.mean(), stats.sem(pairs))
        interval = f"{low:+.2f} to {high:+.2f}"
        verdict = "higher" if low > 0 else "not beyond chance"
        assert row[1:] == ("no distillation", f"{pairs.mean():+.2f}", interval, verdict)
        (row,) = (row for row in gain_rows(study) if row[0] == name)
        assert row[1] == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
        assert row[-1] == f"{pairs.mean():+.2f} ± {(high - low) / 2:.2f}"
    del runs["soft0"], runs["soft1"], runs["soft2"]
    study = made.study(tmp_path / "two", **runs)
    assert over_plain_rows(study) == []  # `contrast_rows` has it
    assert gain_rows(study)[0] == ("method", "top-1 (%)", "over no distillation")


def test_without_a_teacher_or_its_logits(tmp_path):
    assert described(tmp_path / "a", made.config(**PLAIN))[0] == "no distillation"
    assert described(tmp_path / "b", made.config(alpha=0))[0] == "no distillation"
    alone = made.config({"a": made.term(last=1)}, alpha=0)
    assert described(tmp_path / "c", alone)[0] == "SpectralKD without SoftKD"
    assert described(tmp_path / "d", {"seed_everything": 0})[0] == "unknown method"


def test_a_run_of_before_a_setting_is_one_of_its_default(tmp_path):
    before = made.config({"a": made.term("TokenKD", last=1)})
    now = made.config({"a": made.term("TokenKD", last=1, standardise="channel")}, 1, freeze_backbone=False)
    now["data"]["init_args"]["labels"] = True
    other = made.config({"a": made.term("TokenKD", last=1, standardise="phi-s")}, 2)
    runs = {"before": (before, [70.0]), "now": (now, [71.0]), "other": (other, [72.0])}
    methods = made.study(tmp_path, **runs).methods
    assert [[run.name for run in method.runs] for method in methods] == [["before", "now"], ["other"]]
    assert methods[1].title == "TokenKD [standardise: phi-s]"


def test_labels_say_no_more_than_tells_methods_apart(tmp_path):
    def labels(folder):
        return [method.label for method in made.study(tmp_path / folder, **runs).methods]

    last, weak = made.term(last=1), made.term(last=1, weight=0.1)
    runs = {"a": (made.config(), [1.0]), "b": (made.config({"t": last}), [1.0])}
    assert labels("1") == ["SoftKD", "SpectralKD L 1"]
    runs["c"] = made.config({"t": weak}), [1.0]
    assert labels("2") == ["SoftKD", "SpectralKD L 1, β 0.2", "SpectralKD L 1, β 0.1"]
    runs["a"] = made.config(), [1.0] * 3
    runs["d"] = made.config(epochs=9, temperature=2.0), [1.0] * 9
    assert labels("3")[::3] == ["SoftKD (3 epochs)", "SoftKD (9 epochs)"]
    runs["e"] = made.config(epochs=9, temperature=3.0), [1.0] * 9
    assert labels("4")[3:] == ["SoftKD (d)", "SoftKD (e)"]
    runs = {
        str(trained): (made.config({"t": made.term("ProjectorKD", last=1, trainable=trained)}), [1.0])
        for trained in (True, False)
    }
    assert labels("5") == ["ProjectorKD L 1", "ProjectorKD [trainable: false] L 1"]


def contrasts(tmp_path, **runs):
    """Label → the rest of its row."""
    return {row[0]: row[1:] for row in contrast_rows(made.study(tmp_path, **runs))[1:]}


SEEDS = [
    ([80.0, 80.1, 80.2, 80.3], [79.0, 79.2, 79.1, 79.4], "lower"),
    ([80.0, 79.0, 80.2, 79.1], [79.9, 79.2, 79.8, 79.3], "not beyond chance"),
    ([80.0, 80.1, 80.2], [81.0, 81.1], "higher"),
    ([80.0, 81.0, 82.0], [81.0, 81.1], "not beyond chance"),
]


@pytest.mark.parametrize(("soft", "last", "verdict"), SEEDS)
def test_the_interval_is_student_s_t_by_seed_where_seeds_are_shared_else_welch_s(
    tmp_path, soft, last, verdict
):
    runs = {**made.seeds("soft", {}, *soft), **made.seeds("last", LAST, *last)}
    row = contrasts(tmp_path, **runs)["SpectralKD L 1"]
    difference = statistics.fmean(last) - statistics.fmean(soft)
    if len(soft) == len(last):
        pairs, freedom = np.subtract(last, soft), len(soft) - 1
        error = pairs.std(ddof=1) / math.sqrt(len(pairs))
    else:
        squared = [statistics.variance(values) / len(values) for values in (soft, last)]
        error = math.sqrt(sum(squared))
        freedom = sum(squared) ** 2 / sum(
            s**2 / (len(values) - 1) for s, values in zip(squared, (soft, last), strict=True)
        )
    ends = [difference + sign * stats.t.ppf(0.975, freedom) * error for sign in (-1, 1)]
    bounds = f"{ends[0]:+.2f} to {ends[1]:+.2f}"
    assert row == ("SoftKD", f"{difference:+.2f}", bounds, verdict)


@pytest.mark.parametrize("last", [[80.9, 79.9], [81.0, 81.0]])
def test_differences_that_are_all_equal_have_no_interval(tmp_path, last):
    """As few validation images make them: 0.9 points in each of two seeds say nothing of their spread."""
    soft = [80.0, 79.0] if last[0] != last[1] else [80.0, 80.0]
    runs = {**made.seeds("soft", {}, *soft), **made.seeds("last", LAST, *last)}
    _, _, bounds, verdict = contrasts(tmp_path, **runs)["SpectralKD L 1"]
    assert (bounds, verdict) == ("–", "equal in all seeds: no spread")


def test_another_share_of_cross_entropy_belongs_to_the_method(tmp_path):
    dkd = {
        f"dkd{seed}": (made.config({"dkd": made.term("DKD")}, seed, alpha=0.0), [10.0, top1, top1], {})
        for seed, top1 in enumerate([82.0, 83.2])
    }
    ((baseline, *_),) = contrasts(tmp_path, **made.seeds("soft", {}, 80.0, 81.0), **dkd).values()
    assert baseline == "SoftKD"


def test_with_one_seed_a_difference_has_no_verdict(tmp_path):
    runs = {**made.seeds("soft", {}, 80.0, 81.0), **made.seeds("last", LAST, 79.0)}
    assert contrasts(tmp_path, **runs) == {"SpectralKD L 1": ("SoftKD", "-1.50", "–", "one seed")}


def test_plain_training_is_the_baseline_where_there_is_no_softkd(tmp_path):
    runs = {"plain": (made.config(**PLAIN), [70.0]), "last": (made.config(LAST), [71.0])}
    assert contrasts(tmp_path / "a", **runs) == {
        "SpectralKD L 1": ("no distillation", "+1.00", "–", "one seed")
    }
    runs["soft"] = made.config(), [72.0]
    three = contrasts(tmp_path / "b", **runs)
    assert [row[:2] for row in three.values()] == [("SoftKD", "-2.00"), ("SoftKD", "-1.00")]


@pytest.mark.parametrize(
    ("changed", "start", "reason"),
    [
        ({"epochs": 4}, {}, "trainer.max_epochs is 4, not 3"),
        ({"lr_images": 64}, {}, "model.lr_images is 64, not none"),
        ({}, {"images_a_step": 32}, "images a step is 32, not 16"),
        ({}, {"data": {"fingerprint": "d2"}}, "data is d2, not d1"),
        ({}, {"ended": None}, "not finished"),
    ],
)
def test_what_has_other_settings_is_not_compared_and_that_is_said(tmp_path, changed, start, reason):
    runs = {"soft": (made.config(), [77.0]), "last": (made.config(LAST, **changed), [76.0], start)}
    (row,) = contrasts(tmp_path, **runs).values()
    assert row == ("–", "–", "–", f"not compared: {reason}")


def test_what_is_not_known_of_a_run_is_no_difference(tmp_path):
    soft = made.write_run(tmp_path / "soft")
    bare, lost = (made.write_run(tmp_path / name, conf=made.config(LAST)) for name in ("bare", "lost"))
    (bare / "config.yaml").unlink()
    (lost / "run.json").write_text("{")
    half = made.write_run(tmp_path / "half", conf={"seed_everything": 0})
    for path, reason in (
        (bare, "settings of unknown method not known"),
        (half, "settings of unknown method not known"),
        (lost, "images a step and data of SpectralKD L 1 not known"),
    ):
        ((*_, verdict),) = contrast_rows(Study(load_runs([soft, path])))[1:]
        assert verdict == f"not compared: {reason}"


def test_what_was_not_validated_is_no_baseline(tmp_path):
    runs = {"soft": (made.config(), []), "last": (made.config(LAST), [76.0])}
    assert contrasts(tmp_path, **runs) == {}


def test_two_methods_of_one_name_have_a_baseline_each(tmp_path):
    runs = {"a": (made.config(), [70.0, 71.0, 72.0]), "b": (made.config(epochs=4), [70.0, 71.0, 72.0, 73.0])}
    assert contrasts(tmp_path / "two", **runs) == {}
    runs["c"] = made.config(LAST), [70.0, 71.0, 71.5]
    assert contrasts(tmp_path / "three", **runs) == {
        "SpectralKD L 1": ("SoftKD (3 epochs)", "-0.50", "–", "one seed")
    }
