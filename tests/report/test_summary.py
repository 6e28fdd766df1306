import itertools
import math
import statistics

import made
import numpy as np
import pytest
from scipy import stats

from distill_dynamics.report.records import Run
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.summary import findings, permutation_test
from distill_dynamics.report.tables import evolution_rows
from distill_dynamics.runs.profiles import RunProfiles

LAST = {"spectral": made.term(last=1)}


def loaded(tmp_path, *runs):
    """(name, configuration, best top-1, Profiles, start's changes) of each."""
    paths = []
    for name, conf, top1, profiles, changed in runs:
        starts = [made.start(conf["seed_everything"], **changed)]
        paths.append(
            made.write_run(tmp_path / name, made.metrics(10.0, top1, top1), conf, starts, **profiles)
        )
    return load_runs(paths)


def seeds(terms, prefix, *top1, **changed):
    return [
        (f"{prefix}{seed}", made.config(terms, seed=seed), value, {}, changed)
        for seed, value in enumerate(top1)
    ]


def said(runs, start):
    return [sentence for sentence in findings(runs) if sentence.startswith(start)]


def test_nothing_measured(tmp_path):
    assert findings([]) == ["Nothing has been measured yet."]
    assert findings([Run("x", "x", tmp_path, "fit", RunProfiles([], None, None))]) == [
        "Nothing has been measured yet."
    ]


def test_one_run(tmp_path):
    runs = load_runs([made.write_run(tmp_path / "soft", **made.all_profiles())])
    text = findings(runs)
    assert text[:3] == [
        "The student reaches 80.00 % top-1 at its best, epoch 2, and 79.00 % at its last, epoch 3.",
        "The teacher has 90.00 % top-1.",
        "The best student is 10.00 points below the teacher.",
    ]
    assert text[3].startswith("soft's entropy is lowest at block 3 ± 0.0 (a U, 0.250 ± 0.00")
    assert text[3].endswith(
        "bits deep) at the best checkpoint, epoch 2, compressing over blocks 1 to 3 and expanding over 3 to "
        "4, and at block 4 ± 0.0 (no U) at epoch 0."
    )
    # Six depths: the student's curve between its four blocks by hand, at 0, 0.6, 1.2, 1.8, 2.4, 3.
    student = np.array([4.4, 4.34, 4.24, 4.06, 4.1, 4.25])
    distance = math.sqrt(np.mean((student - made.TEACHER) ** 2))
    assert text[4].startswith(f"soft's entropy is {distance:.2f} bits from its teacher's")
    assert "which is lowest at block 2 ± 0.0 (a U, 0.350 ± 0.00" in text[4]
    assert len(text) == 5


@pytest.mark.parametrize(("top1", "told"), [(95.0, "5.00 points above"), (90.001, "level with")])
def test_a_student_at_or_above_its_teacher(tmp_path, top1, told):
    runs = load_runs([made.write_run(tmp_path / "r", made.metrics(top1))])
    assert findings(runs)[0] == f"The student reaches {top1:.2f} % top-1 at its best, epoch 1, its last."
    assert findings(runs)[2] == f"The best student is {told} the teacher."


def test_the_winner_against_the_baseline_and_the_next(tmp_path):
    first = {"spectral": made.term(first=1)}
    rows = [*seeds({}, "soft", 80.0), *seeds(LAST, "last", 79.0), *seeds(first, "first", 81.5)]
    rows += seeds({"p": made.term("ProjectorKD", last=1)}, "p", 80.5)
    runs = loaded(tmp_path, *rows)
    assert findings(runs)[:2] == [
        "Highest top-1 at the best epoch: SpectralKD F 1 with 81.50 %, 1.50 points above the baseline, "
        "SoftKD (80.00 %), and 1.00 points above the next, ProjectorKD L 1, 8.50 points below the teacher.",
        "With one seed each it cannot be told whether that is more than the spread over seeds.",
    ]


def test_where_the_baseline_wins(tmp_path):
    runs = loaded(tmp_path, *seeds({}, "soft", 80.0), *seeds(LAST, "last", 79.0))
    assert findings(runs)[0] == (
        "Highest top-1 at the best epoch: SoftKD, the baseline, with 80.00 %, 1.00 points above the next, "
        "SpectralKD L 1 (79.00 %), 10.00 points below the teacher."
    )


def test_plain_training_as_the_baseline_differs_in_all_of_the_distillation(tmp_path):
    plain = ("plain", made.config(teacher=None, alpha=None), 78.0, {}, {})
    runs = loaded(tmp_path, plain, *seeds({}, "soft", 80.0))
    assert findings(runs)[0].endswith("the next, no distillation (78.00 %), 10.00 points below the teacher.")


def test_a_rival_with_other_settings_is_no_baseline(tmp_path):
    longer = made.config(LAST, epochs=2)
    runs = loaded(tmp_path, *seeds({}, "soft", 79.0), ("last", longer, 80.0, {}, {}))
    text = findings(runs)
    assert "the next, SoftKD (79.00 %); their settings differ in trainer.max_epochs, too" in text[0]
    assert said(
        runs, "No baseline for SpectralKD L 1: it differs from SoftKD in trainer.max_epochs (2, not 3)"
    )


@pytest.mark.parametrize(
    ("soft", "last", "verdict"),
    [
        (
            [80.0, 80.1, 80.2, 80.3],
            [79.0, 79.1, 79.2, 79.3],
            "The difference to SpectralKD L 1 is more than the spread over seeds",
        ),
        (
            [80.0, 79.0, 80.2, 79.1],
            [79.9, 79.2, 79.8, 79.3],
            "The difference to SpectralKD L 1 is not more than the spread over seeds",
        ),
        (
            [80.0, 80.1, 80.2],
            [79.0, 79.1, 79.2],
            "The difference to SpectralKD L 1 cannot be told from the spread over so few seeds",
        ),
    ],
)
def test_against_the_spread_over_seeds(tmp_path, soft, last, verdict):
    runs = loaded(tmp_path, *seeds({}, "soft", *soft), *seeds(LAST, "last", *last))
    (sentence,) = [text for text in findings(runs) if "pooled" in text]
    assert sentence.startswith(f"{verdict}: the {len(soft)} + {len(last)} results")
    pooled = math.sqrt((statistics.variance(soft) + statistics.variance(last)) / 2)
    assert f"pooled standard deviation of {pooled:.2f} points" in sentence

    def difference(a, b):
        return abs(np.mean(a) - np.mean(b))

    test = stats.permutation_test((soft, last), difference, n_resamples=np.inf, alternative="greater")
    assert f"p = {test.pvalue:.2f})" in sentence


def test_the_permutation_test_against_scipy():
    rng = np.random.default_rng(1)
    for one, other in itertools.product((2, 3, 5), (2, 4)):
        a, b = rng.normal(0, 1, one), rng.normal(1, 1, other)
        as_large, ways = permutation_test(a, b)
        assert ways == math.comb(one + other, one)
        test = stats.permutation_test(
            (a, b), lambda x, y: abs(x.mean() - y.mean()), n_resamples=np.inf, alternative="greater"
        )
        assert as_large / ways == pytest.approx(test.pvalue)
    a, b = rng.normal(0, 1, 14), rng.normal(0.8, 1, 14)
    as_large, ways = permutation_test(a, b)
    assert as_large / ways == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.01)


def test_a_test_of_ways_drawn_at_random_is_not_called_exact(tmp_path):
    soft, last = ([value + 0.01 * n for n in range(11)] for value in (80.0, 79.0))
    runs = loaded(tmp_path, *seeds({}, "soft", *soft), *seeds(LAST, "last", *last))
    (sentence,) = [text for text in findings(runs) if "pooled" in text]
    assert "of the 200,000 ways drawn at random to deal them out" in sentence
    assert "(permutation test, p < 0.01)" in sentence
    assert "exact" not in sentence


def test_one_seed_of_one_method_does_not_tell(tmp_path):
    runs = loaded(tmp_path, *seeds({}, "soft", 80.0, 81.0), *seeds(LAST, "last", 79.0))
    assert said(runs, "With one seed for one of the two it cannot be told")


@pytest.mark.parametrize(("last", "side"), [(79.0, "inside"), (75.0, "outside")])
def test_against_the_sampling_error_of_the_validation_images(tmp_path, last, side):
    runs = loaded(tmp_path, *seeds({}, "soft", 80.0), *seeds(LAST, "last", last))
    variances = [stats.binom(1000, share / 100).var() / 1000**2 for share in (80.0, last)]
    margin = stats.norm.ppf(0.975) * 100 * math.sqrt(sum(variances))
    (sentence,) = [text for text in findings(runs) if "sampling error" in text]
    assert f" is {side} the sampling error of the 1,000 validation images: up to {margin:.2f} " in sentence


def test_no_sampling_error_where_the_number_of_images_is_unknown(tmp_path):
    unknown = {"data": {"fingerprint": "d1"}}
    runs = loaded(tmp_path, *seeds({}, "soft", 80.0, **unknown), *seeds(LAST, "last", 79.0, **unknown))
    assert "sampling error" not in " ".join(findings(runs))


def test_no_winner_across_different_data(tmp_path):
    other = {"data": {"fingerprint": "d2"}}
    runs = loaded(tmp_path, *seeds({}, "soft", 80.0), *seeds(LAST, "last", 79.0, **other))
    assert findings(runs)[0] == "The runs were validated on different data, so that none has won."
    assert not said(runs, "Highest")


def test_an_unfinished_run_is_left_out_by_name(tmp_path):
    rows = [*seeds({}, "soft", 80.0), *seeds(LAST, "last", 79.0)]
    running = ("new", made.config({"p": made.term("ProjectorKD", last=1)}), 95.0, {}, {"ended": None})
    runs = loaded(tmp_path, *rows, running)
    assert findings(runs)[0].startswith("Highest top-1 at the best epoch: SoftKD, the baseline, with 80.00 %")
    assert said(
        runs, "Not finished, and left out of the comparison: ProjectorKD L 1 (95.00 % at best after 3 epochs)"
    )


def test_seeds_of_one_method(tmp_path):
    runs = loaded(tmp_path, *seeds(LAST, "last", 79.0, 80.0))
    sentence = "SpectralKD L 1 reaches 79.50 ± 0.71 % over 2 seeds top-1 at its best epoch"
    assert findings(runs)[0] == f"{sentence}, 10.50 points below the teacher."


def curves(*by_epoch, epochs=(1, 2, 3), best=None):
    made_ = {f"student_epoch_{n:04d}": made.profile(n, y) for n, y in zip(epochs, by_epoch, strict=True)}
    return {**made_, "teacher": made.profile(None, made.TEACHER, model="cait"), **(best or {})}


def low_and_near(tmp_path, top1, conf):
    ended = {"student_best": made.profile(3, [3.5, 3.0, 3.25])}
    low = curves([4.0, 3.5, 3.0], [3.9, 3.2, 3.0], [3.5, 3.0, 3.25], best=ended)
    ended = {"student_best": made.profile(3, [4.5, 4.2, 4.4])}
    near = curves([3.0, 3.5, 4.0], [4.0, 4.1, 4.2], [4.5, 4.2, 4.4], best=ended)
    return loaded(tmp_path, ("soft", made.config(), 80.0, near, {}), ("last", conf, top1, low, {}))


@pytest.mark.parametrize(
    ("top1", "changed"),
    [
        (76.5, {}),  # two standard errors of two shares of 1,000 images: 3.6 points
        (60.0, {"epochs": 2}),
        (60.0, {"scheduler": {"class_path": "distill_dynamics.schedule.WarmupCosine"}}),
        (60.0, {"lr_images": 64}),
    ],
)
def test_nothing_goes_along_with_what_is_chance_or_comes_of_other_settings(tmp_path, top1, changed):
    runs = low_and_near(tmp_path, top1, made.config(LAST, **changed))
    assert said(runs, "last's last block")
    assert not said(runs, "The mean top-1 of")
    (nearest,) = said(runs, "Nearest to the teacher's entropy")
    assert "highest top-1" not in nearest


def test_suppression_rebound_and_nearness_go_along_with_no_cause(tmp_path):
    runs = low_and_near(tmp_path, 76.0, made.config(LAST))
    (lowest,) = said(runs, "last's entropy")
    assert "at the best checkpoint, epoch 3," in lowest
    assert "and at block 3 ± 0.0 (no U) at epoch 1; from epoch 1 to 3" in lowest
    assert lowest.endswith("its first block changes by -0.50 ± 0.00 bits, its last by +0.25 ± 0.00.")
    assert said(runs, "last's last block") == [
        "last's last block is its lowest until epoch 2 and rises from epoch 1 to the end, to 0.25 ± 0.00 "
        "bits above its lowest."
    ]
    assert said(runs, "The mean top-1 of last is 4.00 points below that of the others: this goes along with")
    (nearest,) = said(runs, "Nearest to the teacher's entropy, lowest at block 2 ± 0.0 (a U")
    assert "is soft (" in nearest
    assert "farthest last (" in nearest
    assert nearest.endswith("the highest top-1 is its own, and 2 runs are no evidence of a cause.")
    assert len(findings(runs)) <= 9
    text = " ".join(findings(runs))
    for word in ("because", "causes", "due to", "leads to", "harms", "hurts", "proves"):
        assert word not in text


def test_a_last_block_that_is_the_lowest_throughout(tmp_path):
    runs = loaded(tmp_path, ("r", made.config(), 80.0, curves(made.FALLING, made.FALLING, made.FALLING), {}))
    (sentence,) = said(runs, "r's last block")
    assert sentence.startswith("r's last block is its lowest at every probe after epoch 0")


def test_many_curves_share_a_sentence(tmp_path):
    paths = [
        made.write_published(
            tmp_path / f"m{n}.csv",
            {"checkpoint_epoch_1": [1, 2, 3, 4], "model_best": np.roll([1, 2, 3, 4], n)},
        )
        for n in range(5)
    ]
    text = findings(load_runs(paths))
    assert text[0] == (
        "Block of lowest entropy, first probe → best checkpoint (else last probe), ± in the table: 1 in m0 "
        "and m4; 1 → 2 in m1; 1 → 3 in m2; 1 → 4 in m3."
    )
    assert len(text) == 2


def test_one_sentence_says_what_the_range_decides(tmp_path):
    magnitude = [8.0, 2.0, 1.0, 4.0]
    tied = made.profile(None, [6.0, 4.0, 3.0, 5.0], magnitude=magnitude)  # 3 + log2 of the magnitude
    free = made.profile(None, made.FALLING, magnitude=magnitude, range_mode="layer")
    folder = made.write_analysis(
        tmp_path / "out", [("cait", "global", None, False, tied), ("cait", "layer", None, False, free)]
    )
    (sentence,) = findings(load_runs([folder]))
    r = stats.pearsonr(made.FALLING, np.log2(magnitude)).statistic
    assert sentence.startswith(
        "cait's entropy depends on the range of the bins: lowest at block 3 ± 0.0 (a U, 2.000 ±"
    )
    assert "bits deep) where all blocks share one, r = 1.00; " in sentence
    assert f"lowest at block 4 ± 0.0 (no U) where each block has its own, r = {r:.2f}." in sentence

    same = made.profile(None, [6.1, 4.0, 3.0, 5.0], magnitude=magnitude, range_mode="layer")
    folder = made.write_analysis(
        tmp_path / "alike", [("cait", "global", None, False, tied), ("cait", "layer", None, False, same)]
    )
    assert findings(load_runs([folder]))[0].startswith(
        "cait's entropy has one lowest block and one shape under each range of the bins: "
    )

    cut = made.profile(
        None, [3.0, 2.0, 1.0, 2.5], magnitude=magnitude, range_mode="explicit", clipped=[0.5, 0.1, 0, 0.2]
    )
    folder = made.write_analysis(
        tmp_path / "cut", [("cait", "global", None, False, tied), ("cait", "0,1", None, False, cut)]
    )
    assert ", 20.0 % of the values outside it" in findings(load_runs([folder]))[0]


def noisy(curve, seed=0, images=8, **changed):
    """Images that scatter by 0.2 bits, their mean moved onto the curve."""
    values = np.asarray(curve) + np.random.default_rng(seed).normal(0, 0.2, (images, len(curve)))
    values += np.asarray(curve) - values.mean(0)
    return made.profile(changed.pop("epoch", None), curve, images=images, entropy_images=values, **changed)


@pytest.mark.parametrize(
    ("one", "other", "images", "verdict"),
    [
        # Blocks 2 and 3 are level within the noise: neither "depends" nor "one lowest block".
        ([4.5, 4.01, 4.0, 4.5], [5.5, 5.0, 5.01, 5.5], 8, "has a lowest block that these images do not fix"),
        ([4.5, 4.01, 4.0, 4.5], [5.5, 5.01, 5.0, 5.5], 8, "has a lowest block that these images do not fix"),
        ([4.5, 2.0, 4.0, 4.5], [5.5, 5.0, 3.0, 5.5], 8, "depends on the range of the bins"),
        ([4.5, 4.2, 3.0, 4.5], [5.5, 5.2, 4.0, 5.5], 8, "has one lowest block and one shape under each"),
        ([4.5, 4.2, 3.0, 4.5], [5.5, 5.2, 3.0, 2.0], 1, "is known of too few images to tell"),
        ([4.5, 4.2, 3.0, 4.5], [5.5, 5.2, 4.0, 5.5], 1, "is known of too few images to tell"),
    ],
)
def test_what_the_range_decides_is_claimed_beyond_the_noise_alone(tmp_path, one, other, images, verdict):
    curves = [
        ("x", "global", None, False, noisy(one, images=images)),
        ("x", "layer", None, False, noisy(other, seed=1, images=images, range_mode="layer")),
    ]
    (sentence,) = findings(load_runs([made.write_analysis(tmp_path / "out", curves)]))
    assert sentence.startswith(f"x's entropy {verdict}")
    assert (" ± " in sentence) is (images > 1)


def test_more_models_than_four_in_several_ranges_share_a_sentence(tmp_path):
    curves = [
        (f"m{n}", mode, None, False, made.profile(None, curve, range_mode=mode, model=f"m{n}"))
        for n in range(6)
        for mode, curve in (("global", made.U), ("layer", made.U if n == 5 else made.FALLING))
    ]
    assert findings(load_runs([made.write_analysis(tmp_path / "out", curves)])) == [
        "The entropy of each of m0, m1, m2, m3 and m4 depends on the range of the bins. Lowest block: 3 ± "
        "0.0 (U) where all blocks share one, 4 ± 0.0 (no U) where each block has its own in m0, m1, m2, m3 "
        "and m4.",
        "The entropy of each of m5 has one lowest block and one shape under each range of the bins. Lowest "
        "block: 3 ± 0.0 (U) where all blocks share one, 3 ± 0.0 (U) where each block has its own in m5.",
    ]


@pytest.mark.parametrize(("rebound", "claimed"), [(0.0004, False), (0.8, True)])
def test_a_rise_within_the_noise_is_none(tmp_path, rebound, claimed):
    lasts = {1: 1.0, 2: 0.9, 3: 0.8, 4: 0.8 + rebound}
    probes = {
        f"student_epoch_{epoch:04d}": noisy([3.0, 2.5, 2.0, last], seed=epoch, epoch=epoch)
        for epoch, last in lasts.items()
    }
    runs = load_runs([made.write_run(tmp_path / "r", made.metrics(70.0, 71.0, 72.0, 73.0), **probes)])
    (sentence,) = said(runs, "r's last block is its lowest")
    assert ("rises from epoch 3 to the end, to 0.80 ± 0." in sentence) is claimed
    row = dict(zip(*evolution_rows(runs), strict=True))
    assert (row["rises from"] == "3") is claimed
    assert row["rebound (bits)"].startswith(f"{rebound:.2f} ± 0.")


def test_only_what_was_measured_alike_is_ranked_and_ties_are_no_order(tmp_path):
    def folder(name, started=None, **changed):
        profiles = {**made.all_profiles(), **changed}
        profiles = {name: content for name, content in profiles.items() if content is not None}
        return made.write_run(tmp_path / name, starts=[started or made.start()], **profiles)

    def nearest(*paths):
        return [text for text in findings(load_runs(paths)) if "teacher's" in text]

    a = folder("a")
    (tie,) = nearest(a, folder("b"))
    assert tie.startswith("All of a and b are 0.21 bits from the teacher's entropy")
    assert "Nearest" not in tie
    far = folder("far", student_best=made.profile(2, made.U + 0.5))
    (sentence,) = nearest(a, far, folder("c"))
    assert "are a and c (0.21 bits" in sentence
    assert "farthest far (" in sentence
    # A teacher of other weights under the same name; a student seen with other images than its teacher; one
    # that has only just begun.
    turned = made.profile(None, made.TEACHER[::-1] + 0.3, model="cait")
    assert nearest(a, folder("other", teacher=turned)) == []
    other = {name: made.profile(p.epoch, p.entropy, probe_id="p2") for name, p in made.all_profiles().items()}
    (alone,) = nearest(a, folder("images", **{**other, "teacher": made.all_profiles()["teacher"]}))
    assert alone.startswith("a's entropy is 0.21 bits")
    begun = folder("begun", made.start(ended=None), student_epoch_0003=None, student_best=None)
    (alone,) = nearest(a, begun)
    assert alone.startswith("a's entropy is 0.21 bits")
    assert nearest(begun)[0].startswith("begun's entropy at epoch 0 is ")


def test_two_labels_of_one_model_in_several_ranges_are_told_apart(tmp_path):
    curves = [
        (label, value_range, None, False, made.profile(None, curve, range_mode=value_range))
        for label in ("first", "second")
        for value_range, curve in (("global", made.U), ("layer", made.FALLING))
    ]
    told = findings(load_runs([made.write_analysis(tmp_path / "out", curves)]))
    assert [sentence.split("'s entropy")[0] for sentence in told] == ["first", "second"]


def test_a_model_of_one_layer_has_no_lowest_block(tmp_path):
    one = {f"student_epoch_{n:04d}": made.profile(n, [4.0 - n / 10]) for n in (1, 2, 3)}
    runs = loaded(
        tmp_path, ("r", made.config(), 80.0, one, {}), ("s", made.config(), 80.0, made.all_profiles(), {})
    )
    assert not said(runs, "r's")
    assert said(runs, "One layer of r was probed")
    one["teacher"] = made.profile(None, made.TEACHER, model="cait")
    assert "from its teacher" not in " ".join(findings(load_runs([made.write_run(tmp_path / "t", **one)])))
    assert said(runs, "s's entropy is lowest")


def test_a_curve_in_holes_is_left_out_by_name(tmp_path):
    holes = made.profile(3, [4.4, np.nan, 4.0, 4.25])
    one = {**made.all_profiles(), "student_epoch_0001": made.profile(1, [np.nan] * 4), "student_best": holes}
    runs = loaded(
        tmp_path, ("r", made.config(), 80.0, one, {}), ("s", made.config(), 80.0, made.all_profiles(), {})
    )
    assert said(runs, "The entropy of r is not known for every layer")
    first = made.write_run(
        tmp_path / "t", **{**made.all_profiles(), "student_epoch_0000": made.profile(0, [np.nan] * 4)}
    )
    (lowest,) = said(load_runs([first]), "t's entropy is lowest")
    assert "at epoch 3" in lowest
    assert "epoch 0" not in lowest
    text = " ".join(findings(runs))
    assert "nan" not in text
    assert "r's entropy" not in text
    assert said(runs, "s's entropy is ")  # the only distance to a teacher that is known


def test_the_averaged_weights_have_a_sentence(tmp_path):
    rows = made.metrics(70.0, 80.0)
    rows[2]["val/acc1_ema"] = 81.5
    runs = load_runs([made.write_run(tmp_path / "r", rows)])
    assert findings(runs)[3] == "Its averaged weights (EMA) reach 81.50 % at their best, epoch 2."


def test_distances_to_a_teacher_in_other_bins_are_not_ranked(tmp_path):
    one = made.all_profiles()
    wide = {name: made.profile(p.epoch, p.entropy, bins=50) for name, p in made.all_profiles().items()}
    paths = [made.write_run(tmp_path / "a", **one), made.write_run(tmp_path / "b", **one)]
    assert said(load_runs(paths), "All of a and b are 0.21 bits from the teacher's")
    paths[1] = made.write_run(tmp_path / "c", **wide)
    assert not [text for text in findings(load_runs(paths)) if "the teacher's" in text]


def test_other_models_are_no_other_range(tmp_path):
    folder = made.write_analysis(
        tmp_path,
        [
            ("a", "global", None, False, made.profile(None, made.U)),
            ("b", "layer", None, False, made.profile(None, made.U, magnitude=[1, 2, 3, 5])),
        ],
    )
    text = findings(load_runs([folder]))
    assert [sentence.split(" is lowest")[0] for sentence in text] == [
        "a (global)'s entropy",
        "b (layer)'s entropy",
    ]
