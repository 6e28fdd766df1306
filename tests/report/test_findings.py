import math

import made
import numpy as np
import pytest
from scipy import stats

from distill_dynamics.report.findings import findings
from distill_dynamics.report.records import Run
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import evolution_rows
from distill_dynamics.runs.profiles import RunProfiles

LAST = {"spectral": made.term(last=1)}


def found(*paths):
    return findings(Study(load_runs(paths)))


def beginning(study, start):
    return [sentence for sentence in findings(study) if sentence.startswith(start)]


def test_nothing_measured(tmp_path):
    nothing = ["No curve has been measured."]
    assert findings(Study([])) == nothing
    assert findings(Study([Run("x", "x", tmp_path, "fit", RunProfiles([], None, None))])) == nothing


def test_one_run(tmp_path):
    sentences = found(made.write_run(tmp_path / "soft", **made.all_profiles()))
    assert sentences[0].startswith("Entropy is lowest at block 3 (U, 0.250 ± 0.00")
    assert sentences[0].endswith(
        " bits deep) in the best checkpoint (epoch 2), and at block 4 (no U) at epoch 0."
    )
    # Six depths: the student's curve between its four blocks by hand, at 0, 0.6, 1.2, 1.8, 2.4, 3.
    student = np.array([4.4, 4.34, 4.24, 4.06, 4.1, 4.25])
    distance = math.sqrt(np.mean((student - made.TEACHER) ** 2))
    assert sentences[1] == (
        f"The curve is {distance:.2f} bits from the teacher's (root mean square at matched depth), which is "
        "lowest at block 2 (U) of 6."
    )
    assert len(sentences) == 2


def test_the_highest_and_what_seeds_and_images_do_not_tell(tmp_path):
    runs = {**made.seeds("soft", {}, 80.0), **made.seeds("last", LAST, 81.5)}
    sentences = findings(made.study(tmp_path / "one", **runs))
    variance = stats.binom(1000, 0.8).var() / 1000**2
    margin = stats.norm.ppf(0.975) * 100 * math.sqrt(2 * variance)
    assert sentences[:3] == [
        "Highest top-1: SpectralKD L 1 with 81.50 %.",
        "With one seed a difference cannot be told from the spread over seeds.",
        f"Two models may differ by up to {margin:.2f} points by the choice of the 1,000 validation images "
        "alone (95 %, binomial; less where both err on the same images).",
    ]
    runs = {**made.seeds("soft", {}, 80.0, 81.0), **made.seeds("last", LAST, 79.0, 79.5)}
    runs |= made.seeds("p", {"p": made.term("ProjectorKD", last=1)}, 81.0, 82.1)
    sentences = findings(made.study(tmp_path / "two", **runs))
    assert sentences[0] == "Highest top-1: ProjectorKD L 1 with 81.55 %, mean of 2 seeds."
    assert sentences[1] == "Each interval is of one contrast: of many, some leave 0 out by chance."
    assert not [sentence for sentence in sentences if "one seed" in sentence]


def test_no_sampling_error_where_the_number_of_images_is_unknown(tmp_path):
    unknown = {"data": {"fingerprint": "d1"}}
    runs = {**made.seeds("soft", {}, 80.0, **unknown), **made.seeds("last", LAST, 79.0, **unknown)}
    assert not [text for text in findings(made.study(tmp_path, **runs)) if "validation images" in text]


def test_nobody_is_highest_across_different_data_or_before_the_end(tmp_path):
    other = {"data": {"fingerprint": "d2"}}
    runs = {**made.seeds("soft", {}, 80.0), **made.seeds("last", LAST, 79.0, **other)}
    assert findings(made.study(tmp_path / "data", **runs)) == [
        "The runs were validated on different data: none has won."
    ]
    runs = {**made.seeds("soft", {}, 80.0), **made.seeds("last", LAST, 95.0, ended=None)}
    assert beginning(made.study(tmp_path / "open", **runs), "Highest top-1: SoftKD with 80.00 %")


def curves(*by_epoch, best):
    students = {f"student_epoch_{n:04d}": made.profile(n, y) for n, y in enumerate(by_epoch, start=1)}
    teacher = made.profile(None, made.TEACHER, model="cait")
    return {**students, "teacher": teacher, "student_best": made.profile(3, best)}


def test_suppression_rebound_and_nearness_and_never_a_cause(tmp_path):
    low = curves([4.0, 3.5, 3.0], [3.9, 3.2, 3.0], [3.5, 3.0, 3.25], best=[3.5, 3.0, 3.25])
    near = curves([3.0, 3.5, 4.0], [4.0, 4.1, 4.2], [4.5, 4.2, 4.4], best=[4.5, 4.2, 4.4])
    study = made.study(
        tmp_path / "two",
        soft=(made.config(), [10.0, 80.0, 80.0], {}, near),
        last=(made.config(LAST), [10.0, 76.0, 76.0], {}, low),
    )
    suppressed = "until epoch 2, and rises by 0.25 bits from epoch 1 on"
    sentences = findings(study)
    assert sentences[3:5] == [
        "Shape of the entropy curve: U in soft and last.",
        f"The last block has the lowest entropy in last {suppressed}.",
    ]
    assert sentences[5].startswith("Distance to the teacher's entropy (root mean square at matched depth): ")
    assert "least in soft (" in sentences[5]
    assert "most in last (" in sentences[5]
    assert len(sentences) == 6
    for word in ("because", "causes", "due to", "leads to", "harms", "hurts", "proves"):
        assert word not in " ".join(sentences)

    alone = found(study.runs[1].path)
    assert (
        "From epoch 1 to 3 the entropy of the first block changed by -0.50 bits, of the last block "
        in alone[1]
    )
    assert alone[1].endswith("by +0.25 bits.")
    assert alone[2] == f"The last block has the lowest entropy {suppressed}."


def test_a_last_block_that_is_the_lowest_throughout(tmp_path):
    falling = curves(*[made.FALLING] * 3, best=made.FALLING)
    study = made.study(tmp_path, r=(made.config(), [10.0, 80.0, 80.0], {}, falling))
    assert beginning(study, "The last block has the lowest entropy at every probe after epoch 0.")


def test_shapes_of_many_runs_are_one_sentence(tmp_path):
    one = {"checkpoint_epoch_1": [1, 2, 3, 4]}
    paths = [made.write_published(tmp_path / f"m{n}.csv", one) for n in range(3)]
    half = made.profile(3, [4.4, np.nan, 4.0, 4.25])
    flat = {f"student_epoch_{n:04d}": made.profile(n, [4.0 - n / 10]) for n in (1, 2)}
    paths += [
        made.write_run(tmp_path / "half", **{**made.all_profiles(), "student_best": half}),
        made.write_run(tmp_path / "flat", **flat),
        made.write_run(tmp_path / "u", **made.all_profiles()),
        made.write_run(tmp_path / "one", student_best=made.profile(3, made.U, images=1)),
    ]
    (sentence,) = [text for text in found(*paths) if text.startswith("Shape")]
    assert sentence == (
        "Shape of the entropy curve: unknown: no images in m0, m1 and m2; unknown: not measured in half; "
        "unknown: one layer in flat; U in u; unknown: one image in one."
    )


def test_a_curve_that_is_none(tmp_path):
    half = {**made.all_profiles(), "student_best": made.profile(3, [4.4, np.nan, 4.0, 4.25])}
    assert found(made.write_run(tmp_path / "half", **half)) == ["The entropy is not known for every layer."]
    flat = {"student_best": made.profile(1, [4.0]), "teacher": made.profile(None, made.TEACHER)}
    assert found(made.write_run(tmp_path / "flat", **flat)) == [
        "One layer was probed: that is no curve over depth."
    ]
    first = {**made.all_profiles(), "student_epoch_0000": made.profile(0, [np.nan] * 4)}
    assert "and at block 3 (U) at epoch 3." in found(made.write_run(tmp_path / "first", **first))[0]


@pytest.mark.parametrize(("rebound", "claimed"), [(0.0004, False), (0.8, True)])
def test_a_rise_within_the_noise_is_none(tmp_path, rebound, claimed):
    probes = {}
    for epoch, last in {1: 1.0, 2: 0.9, 3: 0.8, 4: 0.8 + rebound}.items():
        curve = np.array([3.0, 2.5, 2.0, last])
        values = curve + np.random.default_rng(epoch).normal(0, 0.2, (8, 4))
        values += curve - values.mean(0)
        content = made.profile(epoch, curve, images=8, entropy_images=values)
        probes[f"student_epoch_{epoch:04d}"] = content
    runs = load_runs([made.write_run(tmp_path / "r", made.metrics(70.0, 71.0, 72.0, 73.0), **probes)])
    (sentence,) = beginning(Study(runs), "The last block has the lowest entropy")
    assert ("rises by 0.80 ± 0." in sentence and "bits from epoch 3 on" in sentence) is claimed
    row = dict(zip(*evolution_rows(runs), strict=True))
    assert (row["rises from"] == "3") is claimed
    assert row["rebound (bits)"].startswith(f"{rebound:.2f} ± 0.")


def test_only_what_was_measured_alike_is_ranked_and_ties_are_no_order(tmp_path):
    def folder(name, started=None, **changed):
        profiles = {**made.all_profiles(), **changed}
        profiles = {name: content for name, content in profiles.items() if content is not None}
        return made.write_run(tmp_path / name, starts=[started or made.start()], **profiles)

    def distances(*paths):
        return [text.split("depth): ")[-1] for text in found(*paths) if text.startswith("Distance")]

    a = folder("a")
    assert distances(a, folder("b")) == ["0.21 bits in SoftKD."]
    far = folder("far", student_best=made.profile(2, made.U + 0.5))
    (ranked,) = distances(a, far, folder("c"))
    assert ranked.startswith("least in a and c (0.21 bits), most in far (")
    # A teacher of other weights under the same name; other bins; a student seen with other images than its
    # teacher; one that has only just begun.
    turned = made.profile(None, made.TEACHER[::-1] + 0.3, model="cait")
    assert distances(a, folder("other", teacher=turned)) == []
    bins = {name: made.profile(p.epoch, p.entropy, bins=50) for name, p in made.all_profiles().items()}
    assert distances(a, folder("bins", **bins)) == []
    other = {name: made.profile(p.epoch, p.entropy, probe_id="p2") for name, p in made.all_profiles().items()}
    images = folder("images", **{**other, "teacher": made.all_profiles()["teacher"]})
    assert distances(a, images) == []
    assert not [text for text in found(images) if "teacher's" in text]
    begun = folder("begun", made.start(ended=None), student_epoch_0003=None, student_best=None)
    assert distances(a, begun) == []
    assert any(" bits from the teacher's" in text for text in found(begun))
