"""What a page says first: its cards, one sentence, and where its numbers come from."""

import statistics
from pathlib import Path

import made
import numpy as np
import pytest

from distill_dynamics.report.cards import cards
from distill_dynamics.report.guide import about_u, next_steps, recipes
from distill_dynamics.report.headline import headline
from distill_dynamics.report.provenance import Duration, circumstances_of, duration, in_words
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study

COSTS = {
    "student_cost": {"parameters": 200_000, "megabytes": 0.8, "gflop": 0.5, "ms_1": 10.0, "ms_32": 20.0},
    "teacher_cost": {"parameters": 900_000, "megabytes": 3.6, "gflop": 2.0, "ms_1": 15.0, "ms_32": 90.0},
}
TIMES = {"started": "2026-11-29T05:43:04+00:00", "ended_at": "2026-11-29T07:00:09+00:00"}
WHERE = {"devices": "1 x cpu", "machine": "Xeon, 2 CPUs"}


def loaded(*paths):
    return Study(load_runs(paths))


def found(*paths):
    return {card.title: (card.value, card.details) for card in cards(loaded(*paths))}


def test_the_cards_of_one_run(tmp_path):
    rows = made.metrics(70.0, 80.0, 79.0)
    rows[2]["val/acc1_ema"] = 81.5
    run = made.write_run(tmp_path / "r", rows, starts=[made.start(**COSTS, **TIMES, **WHERE)])
    assert found(run) == {
        "Student": (
            "80.00 %",
            [
                "top-1 at the best epoch, 2",
                "79.00 % at the last, 3",
                "81.50 % with averaged weights (EMA), at epoch 2",
                "deit",
            ],
        ),
        "Teacher": ("90.00 %", ["top-1", "cait"]),
        "Gap": ("10.00 points", ["below the teacher on 1,000 validation images"]),
        "Compression": (
            "4.5 ×",
            ["0.20 M of 0.90 M parameters", "4.0 × fewer operations", "1.5 × faster for one image"],
        ),
        "Time": ("1 h 17 min", ["training and probing, 3 epochs", "on 1 x cpu"]),
    }


@pytest.mark.parametrize(
    ("top1", "gap"),
    [(95.0, ("5.00 points", "above the teacher")), (90.001, ("none", "level with the teacher"))],
)
def test_a_student_at_or_above_its_teacher(tmp_path, top1, gap):
    known = found(made.write_run(tmp_path / "r", made.metrics(top1)))
    assert known["Student"][1][0] == "top-1 at the best and last epoch, 1"
    assert known["Gap"] == (gap[0], [f"{gap[1]} on 1,000 validation images"])
    assert "Compression" not in known  # a run of an earlier version
    assert "Time" not in known


def test_a_student_larger_than_its_teacher_is_no_compression(tmp_path):
    turned = {"student_cost": COSTS["teacher_cost"], "teacher_cost": COSTS["student_cost"]}
    larger = made.write_run(tmp_path / "larger", starts=[made.start(**turned)])
    assert found(larger)["Compression"] == (
        "none",
        [
            "0.90 M beside the teacher's 0.20 M parameters",
            "4.0 × more operations",
            "1.5 × slower for one image",
        ],
    )
    smaller = made.write_run(tmp_path / "smaller", starts=[made.start(**COSTS)])
    assert found(larger, smaller)["Compression"] == (
        "0.2 to 4.5 ×",
        [
            "4.0 × more operations to 4.0 × fewer operations",
            "1.5 × slower for one image to 1.5 × faster for one image",
        ],
    )


def test_what_is_not_known_has_no_card(tmp_path):
    assert found(made.write_run(tmp_path / "begun", [], {}, [])) == {}
    alone = made.write_run(tmp_path / "alone", made.metrics(70.0, teacher=None), starts=[made.start()])
    assert set(found(alone)) == {"Student"}
    unvalidated = [{"epoch": 1, "step": 5, "train/loss": 1.0, "val/acc1": "nan"}]
    assert found(made.write_run(tmp_path / "u", unvalidated, {}, [made.start(**COSTS)])).keys() == {
        "Compression"
    }
    size = made.start(**(COSTS | {"teacher_cost": None}))
    assert found(made.write_run(tmp_path / "s", [], {}, [size]))["Size"] == (
        "0.20 M",
        ["parameters", "10 ms an image"],
    )
    published = made.write_published(tmp_path / "p.csv", {"model_best": [3, 2, 3, 4]})
    assert found(published) == {}


@pytest.mark.parametrize(
    "wrong", [None, 3, "soon", [], {"a": 1}, "2026-13-01", "9999-12-31T23:59:59-23:00", True]
)
def test_a_record_of_others_may_say_anything(tmp_path, wrong):
    start = made.start(**dict.fromkeys([*COSTS, *TIMES, *WHERE, "teacher"], wrong))
    (run,) = load_runs([made.write_run(tmp_path / "r", starts=[start], **made.all_profiles())])
    assert "Time" not in {card.title for card in cards(Study([run]))}
    circumstances_of([run])


def test_an_accuracy_that_nobody_has_costs_no_page(tmp_path):
    runs = [
        made.write_run(tmp_path / name, made.metrics(900.0, teacher=-5.0), made.config(terms))
        for name, terms in (("a", {}), ("b", {"s": made.term(last=1)}))
    ]
    for paths in (runs, runs[:1]):
        assert made.write_page(tmp_path / "r.html", *paths, only=[]).exists()


def test_the_cards_of_several_runs(tmp_path):
    last = {"s": made.term(last=1)}
    runs = made.seeds("soft", {}, 80.0, 81.0, **COSTS, **TIMES) | made.seeds(
        "last", last, 82.0, 83.5, **COSTS
    )
    study = made.study(tmp_path, **runs)
    known = {card.title: (card.value, card.details) for card in cards(study)}
    spread = statistics.stdev([82.0, 83.5])
    assert known["Highest student"][0] == "82.75 %"
    label, mean, against = known["Highest student"][1]
    assert (label, mean) == ("SpectralKD L 1", f"mean top-1 ± {spread:.2f} over 2 seeds")
    assert against.startswith("+2.25 points against SoftKD: ")
    assert known["Teacher"] == ("90.00 %", ["top-1"])
    assert known["Gap"][0] == "7.25 points"
    assert known["Compression"][0] == "4.5 ×"
    assert known["Time"] == ("2 h 34 min", ["in all, of 2 of 4 runs"])


def test_no_card_says_who_is_best_on_different_data(tmp_path):
    runs = made.seeds("a", {}, 80.0) | made.seeds(
        "b", {"s": made.term(last=1)}, 82.0, data={"fingerprint": "x"}
    )
    assert "Highest student" not in {card.title for card in cards(made.study(tmp_path, **runs))}


def test_a_duration_is_of_all_starts_and_says_where_some_are_not_known(tmp_path):
    starts = [made.start(**TIMES), made.start(from_epoch=1, started="2026-11-29T08:00:00+00:00", ended=None)]
    (run,) = load_runs([made.write_run(tmp_path / "r", starts=starts)])
    assert duration(run) == Duration(77 * 60 + 5, False)
    assert in_words(duration(run)) == "more than 1 h 17 min"
    words = {0.2: "1 s", 59.6: "1 min 0 s", 200: "3 min 20 s", 90_000: "1 d 1 h"}
    assert {seconds: in_words(Duration(seconds, True)) for seconds in words} == words


def test_where_the_figures_come_from(tmp_path):
    run = made.write_run(tmp_path / "r", starts=[made.start(**TIMES, **WHERE)], **made.all_profiles())
    assert circumstances_of(load_runs([run])) == [
        "Begun 29 November 2026 at 05:43 UTC; it took 1 h 17 min.",
        "Computed on 1 x cpu (Xeon, 2 CPUs).",
        "Curves are of 4 probe images of the validation images of Data (hash of their pixels: p1).",
    ]
    old = made.write_run(tmp_path / "old", starts=[], **made.all_profiles())
    assert circumstances_of(load_runs([old])) == ["Curves are of 4 probe images (hash of their pixels: p1)."]
    curves = [("m", "global", None, False, made.profile(None, made.U))]
    assert circumstances_of(load_runs([made.write_analysis(tmp_path / "a", curves)])) == [
        "Curves are of 4 probe images of sample (hash of their pixels: p1)."
    ]


# --- one sentence ---------------------------------------------------------------------------------------


def sentence(folder, entropy, teacher=None, **changed):
    profiles = {"student_best": made.profile(3, entropy, **changed)}
    if teacher is not None:
        profiles["teacher"] = made.profile(None, teacher)
    return headline(loaded(made.write_run(folder, **profiles)))


def test_the_sentence_is_what_the_curve_holds(tmp_path):
    say = iter(range(99))

    def told(entropy, **changed):
        return sentence(tmp_path / str(next(say)), entropy, **changed)

    student = "The student's entropy"
    deep = "is a U: 0.40 bits down to block 3 of 4, 0.25 up from it"
    assert told(made.U) == f"{student} {deep} (its magnitude has another shape)."
    assert told(made.U, magnitude=[4, 3, 1, 2]).endswith(
        "(its magnitude has the same shape, so this may be scale alone)."
    )
    assert told(made.U, range_mode="scaled").endswith("up from it, in bins that follow each layer's scale.")
    assert told(made.FALLING) == f"{student} is no U: lowest at block 4 of 4, 0.30 bits below its first."
    assert told(made.FALLING[::-1]) == f"{student} is no U: lowest at block 1 of 4, 0.30 bits below its last."
    assert (
        told([4.0, 4.01, 4.02, 4.0]) == f"{student} shows nothing: its blocks differ by less than 0.05 bits."
    )
    assert (
        told(made.U, images=1)
        == f"{student} is lowest at block 3 of 4, and whether it is a U is unknown: one image."
    )
    assert told([4.01, 4.0, 4.4, 4.02]).endswith(
        "but neither end is above it by 0.05 bits and by more than chance."
    )
    assert told([4.4, np.nan, 4.0, 4.3]) == ""
    assert told([4.0]) == ""
    assert told(made.FALLING, teacher=made.TEACHER).endswith(
        "below its first; the teacher's is a U: 0.40 bits down to block 2 of 6, 0.35 up from it "
        "(its magnitude has another shape)."
    )


def test_the_sentence_of_several_counts(tmp_path):
    runs = [made.write_run(tmp_path / name, student_best=made.profile(3, curve)) for name, curve in (
        ("a", made.U), ("b", made.FALLING), ("c", made.U))]  # fmt: skip
    runs.append(made.write_run(tmp_path / "d", student_best=made.profile(3, made.U, images=1)))
    assert (
        headline(loaded(*runs))
        == "The entropy is a U in 2 of 4 students (a and c), and of 1 it cannot be told."
    )
    assert headline(
        loaded(*runs[1:2], made.write_published(tmp_path / "p.csv", {"model_best": [1, 2, 3, 4]}))
    ) == ("The entropy is a U in none of 2 curves, and of 1 it cannot be told.")
    assert headline(loaded(made.write_run(tmp_path / "none"))) == ""


# --- what next ------------------------------------------------------------------------------------------


def steps(folder, *rest, **profiles):
    return " ".join(next_steps(loaded(made.write_run(folder, *rest, **profiles))))


def test_what_next_follows_from_what_a_run_shows(tmp_path):
    one = steps(tmp_path / "one", **made.all_profiles())
    assert one.startswith("One run with one seed compares with nothing")
    assert "logits alone" in one
    assert "The best epoch is the last" not in one
    assert "best epoch is the last" in steps(tmp_path / "rising", made.metrics(70.0, 80.0, 81.0))
    assert "Student and teacher differ by no more" in steps(
        tmp_path / "level", made.metrics(10.0, 89.0, 88.0)
    )
    assert "Student and teacher" not in one  # ten points apart
    assert "`distill_dynamics fit --config runs/open/config.yaml --ckpt_path last`" in steps(
        tmp_path / "open", made.metrics(70.0), None, [made.start(ended=None)]
    )
    plain = made.config(teacher=None)
    assert "Without a teacher" in steps(tmp_path / "plain", made.metrics(70.0, teacher=None), plain)


def test_what_next_of_terms_and_floors(tmp_path):
    rows = made.metrics(70.0, 80.0, 79.0)
    for row in rows[1:]:
        row["train/loss_f"] = 0.5
    starts = [made.start(floors={"f": 0.25})]
    last = made.config({"f": made.term("FitNet", last=1)})
    told = "Term f ends at 0.5, and no linear map from the student goes below 0.25: `PCATarget`"
    assert told in steps(tmp_path / "last", rows, last, starts)
    both = made.config({"f": made.term("FitNet", first=1, last=1)})
    assert told not in steps(tmp_path / "both", rows, both, starts)
    for name, floor, advice in (("wide", 0.04, "hardly the limit"), ("narrow", 0.25, "`capacity_gate.yaml`")):
        floors = {"capacity_floor": [0.01, 0.02, 0.02, floor, 0.02, 0.01], "correlation_floor": [0.0] * 6}
        teacher = made.profile(None, made.TEACHER, model="cait", student_width=8, **floors)
        text = steps(tmp_path / name, **{**made.all_profiles(), "teacher": teacher})
        assert f"{100 * floor:.0f} % of the variance of block 4 is beyond any linear map" in text
        assert advice in text


def test_a_run_without_classes_and_validation_images_is_told_as_one(tmp_path):
    data = {"name": "UnlabelledFolder", "fingerprint": "d1", "classes": 0, "val_images": 0}
    rows = [{"epoch": n, "step": n, "train/loss": 1.0 / n} for n in (1, 2, 3)]
    folder = made.write_run(tmp_path / "r", rows, starts=[made.start(data=data)], **made.all_profiles())
    runs = load_runs([folder])
    step = next_steps(Study(runs))[0]
    assert "--seeds" not in step  # `fit` has nothing to compare them by
    assert "SoftKD" not in step
    data["val_images"] = 100
    other = made.write_run(tmp_path / "s", rows, starts=[made.start(data=data)], **made.all_profiles())
    step = next_steps(Study(load_runs([other])))[0]
    assert "`--seeds 3` trains it on three" in step
    assert "SoftKD" not in step
    assert "of the training images of UnlabelledFolder" in " ".join(circumstances_of(runs))
    missing = [line for line in runs[0].warnings if line.startswith("No ")]
    assert missing == ["No validation images: the student is that of the last epoch, whatever its quality."]


def test_what_next_of_several(tmp_path):
    runs = made.seeds("soft", {}, 80.0, 81.0) | made.seeds("last", {"s": made.term(last=1)}, 80.5, 80.4)
    text = " ".join(
        next_steps(made.study(tmp_path, **runs, **made.seeds("p", {"p": made.term("FitNet")}, 80.0)))
    )
    assert "FitNet: one seed does not tell" in text
    assert "`--seeds 3`" in text
    assert "SpectralKD L 1: these seeds do not tell a difference from the baseline" in text


def test_the_box_warns_of_the_global_range_and_names_the_recipes(tmp_path):
    runs = load_runs([made.write_run(tmp_path / "r", **made.all_profiles())])
    assert 4 <= len(about_u(runs)) + len(next_steps(Study(runs))) <= 10
    assert about_u([]) == []
    path, address = recipes()
    assert (Path(__file__).parents[2] / path).is_file()
    assert not address or address.startswith("https://")
