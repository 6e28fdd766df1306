"""What the numbers of one run or several say, in sentences that claim no more than they show."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature import change_error, evolution, gap, rebound, signature
from distill_dynamics.figures.order import alike, same_bins
from distill_dynamics.report.methods import (
    Method,
    baseline,
    baseline_warnings,
    baselines,
    differences,
    labels,
    methods,
    unknown,
)
from distill_dynamics.report.records import Run, counted, listed
from distill_dynamics.report.tables import trained_probes
from distill_dynamics.tables import accuracies, measured, shape, with_error

_ONE_BY_ONE = 4
"""So many curves get a sentence each; more share one, and more than `_IN_ONE` are for the tables."""
_IN_ONE = 12


def findings(runs: Sequence[Run]) -> list[str]:
    """The sentences a reader wants first: who won and whether by chance, and what the curves say.

    Never a cause: what goes along with what, and what the number of seeds, images and runs does not tell.
    """
    said = [*_accuracy(runs), *_curves(runs), *_suppressed(runs), *_distances(runs), *_ranges(runs)]
    return said or ["Nothing has been measured yet."]


# --- accuracy -----------------------------------------------------------------------------------------


def _accuracy(runs: Sequence[Run]) -> list[str]:
    trained = [run for run in runs if run.kind == "fit"]
    if len(trained) == 1:
        return _one_run(trained[0])
    found = [method for method in methods(trained) if method.score()]
    names = dict(zip(map(id, found), labels(found), strict=True))
    final = [method for method in found if method.finished]
    said = []
    if len({run.data for method in final for run in method.runs} - {None}) > 1:
        said.append("The runs were validated on different data, so that none has won.")
    elif len(final) == 1:
        teacher = _to_teacher(final[0])
        said.append(f"{names[id(final[0])]} reaches {_top1(final[0])} top-1 at its best epoch{teacher}.")
    elif final:
        said += _contest(final, names)
    if open_ := [method for method in found if not method.finished]:
        shown = [
            f"{names[id(m)]} ({m.score()} % at best after {counted(m.runs[0].epochs, 'epoch')})"
            for m in open_
        ]
        said.append(f"Not finished, and left out of the comparison: {listed(shown)}.")
    said += baseline_warnings(trained)
    return said


def _one_run(run: Run) -> list[str]:
    found, said = accuracies(run.metrics), []
    if "student, best" in found:
        best, last = found["student, best"], found["student, last"]
        at_end = ", its last" if best == last else f", and {last.top1:.2f} % at its last, epoch {last.epoch}"
        said.append(f"The student reaches {best.top1:.2f} % top-1 at its best, epoch {best.epoch}{at_end}.")
    if "teacher" in found:
        said.append(f"The teacher has {found['teacher'].top1:.2f} % top-1.")
    if {"teacher", "student, best"} <= found.keys():
        said.append(f"The best student is {_apart(best.top1 - found['teacher'].top1)} the teacher.")
    if "EMA, best" in found:
        best = found["EMA, best"]
        said.append(f"Its averaged weights (EMA) reach {best.top1:.2f} % at their best, epoch {best.epoch}.")
    return said


def _contest(found: Sequence[Method], names: dict[int, str]) -> list[str]:
    """The highest top-1 against the baseline's, or the next one's where it is the baseline or has none."""
    first, second = sorted(found, key=_mean, reverse=True)[:2]  # stable: of equals, the order given
    base = baseline(first, found)
    rival = second if base is None or base is first else base
    difference = _mean(first) - _mean(rival)
    role = ", the baseline," if any(first is other for other in baselines(found)) else ""
    sentence = f"Highest top-1 at the best epoch: {names[id(first)]}{role} with {_top1(first)}, "
    shown = f"{names[id(rival)]} ({_top1(rival)})"
    if rival is base:
        sentence += f"{_apart(difference)} the baseline, {shown}"
        if second is not rival:
            sentence += f", and {_apart(_mean(first) - _mean(second))} the next, {names[id(second)]}"
    else:
        sentence += f"{_apart(difference)} the next, {shown}"
        if lacking := unknown(first, rival):
            sentence += "".join(f"; the {what} of {names[id(who)]} are not known" for who, what in lacking)
        if other := differences(first, rival):
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            sentence += f"; their settings differ in {', '.join(other[:3])}{more}, too"
    sentence += _to_teacher(first)
    to_rival = f"The difference to {names[id(rival)]}"
    chance = [_seeds(first, rival, len(found), to_rival), _sampling(first, rival, to_rival)]
    return [f"{sentence}.", *(text for text in chance if text)]


def _to_teacher(method: Method) -> str:
    """ ", 3.21 points below the teacher"; "" where the teacher was not measured, or there were several."""
    found = [accuracies(run.metrics).get("teacher") for run in method.runs]
    top1 = {round(teacher.top1, 3) for teacher in found if teacher}
    return f", {_apart(_mean(method) - top1.pop())} the teacher" if len(top1) == 1 else ""


def _seeds(a: Method, b: Method, compared: int, subject: str) -> str:
    """Whether the difference of two methods is more than the spread over their seeds."""
    one, other = (list(method.by_seed("best").values()) for method in (a, b))
    if len(one) < 2 or len(other) < 2:
        which = "each" if len(one) == len(other) else "for one of the two"
        return f"With one seed {which} it cannot be told whether that is more than the spread over seeds."
    as_large, ways = permutation_test(one, other)
    spread = math.sqrt(
        (np.var(one, ddof=1) * (len(one) - 1) + np.var(other, ddof=1) * (len(other) - 1))
        / (len(one) + len(other) - 2)
    )
    exact = ways == math.comb(len(one) + len(other), len(one))
    # Of ways that were drawn, the one that came about counts, too (Phipson and Smyth, 2010).
    p = as_large / ways if exact else (as_large + 1) / (ways + 1)
    least = (2 if len(one) == len(other) else 1) / ways
    chance = f"p = {p:.2f}" if p >= 0.005 else "p < 0.01"
    if p <= 0.05:
        verdict = f"{subject} is more than the spread over seeds"
    elif least > 0.05:
        verdict = f"{subject} cannot be told from the spread over so few seeds"
    else:
        verdict = f"{subject} is not more than the spread over seeds"
    picked = f"; picking the best of {compared} makes chance likelier" if compared > 2 and p <= 0.05 else ""
    tried = f"{ways} ways" if exact else f"{ways:,} ways drawn at random"
    test = "exact permutation test" if exact else "permutation test"
    return (
        f"{verdict}: the {len(one)} + {len(other)} results have a pooled standard deviation of {spread:.2f} "
        f"points, and {as_large} of the {tried} to deal them out to two methods give a difference as large "
        f"({test}, {chance}{picked})."
    )


def permutation_test(one: Sequence[float], other: Sequence[float]) -> tuple[int, int]:
    """Two-sided permutation test of a difference of means (Fisher, 1935) → (ways as extreme, ways tried).

    All ways are tried up to 200,000 of them (10 + 10 values), else as many drawn with a fixed seed.
    """
    values = np.array([*one, *other])
    n, total = len(one), len(values)

    def distance(sums: FloatArray) -> FloatArray:
        return np.abs(sums / n - (values.sum() - sums) / (total - n))

    if math.comb(total, n) <= 200_000:
        chosen: Iterable = combinations(range(total), n)
        sums = np.array([values[list(rows)].sum() for rows in chosen])
    else:
        rng = np.random.default_rng(0)
        sums = np.array([rng.permutation(values)[:n].sum() for _ in range(200_000)])
    observed = distance(np.array([sum(one)]))
    return int((distance(sums) >= observed - 1e-9).sum()), len(sums)


def _sampling(a: Method, b: Method, subject: str) -> str:
    """Whether the difference is more than the choice of validation images makes; "" where unknown."""
    counts = {run.validation_images for method in (a, b) for run in method.runs}
    n = counts.pop() if len(counts) == 1 else None
    if n is None:
        return ""
    shares = [_mean(method) / 100 for method in (a, b)]
    margin = 1.96 * 100 * math.sqrt(sum(share * (1 - share) for share in shares) / n)
    where = "inside" if abs(_mean(a) - _mean(b)) <= margin else "outside"
    return (
        f"{subject} is {where} the sampling error of the {n:,} validation images: up to "
        f"{margin:.2f} points between two models (95 %, binomial; less where both err on the same images)."
    )


def _mean(method: Method) -> float:
    score = method.score()
    return score.mean if score else math.nan


def _top1(method: Method) -> str:
    count = len(method.by_seed("best"))
    return f"{method.score()} %" + (f" over {count} seeds" if count > 1 else "")


def _apart(difference: float) -> str:
    if abs(difference) < 0.005:
        return "level with"
    return f"{abs(difference):.2f} points {'below' if difference < 0 else 'above'}"


# --- dynamics -----------------------------------------------------------------------------------------


def _curves(runs: Sequence[Run]) -> list[str]:
    """Where each entropy curve is lowest, whether it is a U, and how its ends moved."""
    told = {run.name for group in _one_model_many_ranges(runs) for run, _ in group if run.models}
    probed = [(run, run.latest) for run in runs if run.latest is not None and run.name not in told]
    missing = [run.name for run, latest in probed if not measured(latest)]
    said = [f"The entropy of {listed(missing)} is not known for every layer: left out."] if missing else []
    if single := [run.name for run, latest in probed if len(latest.layers) == 1]:
        said.append(f"One layer of {listed(single)} was probed: that is no curve over depth.")
    shown = [(run, latest) for run, latest in probed if measured(latest) and len(latest.layers) > 1]
    if not shown:
        return said
    if len(shown) <= _ONE_BY_ONE:
        said += [_lowest(run, latest) for run, latest in shown]
    else:
        clauses: dict[str, list[str]] = {}
        for run, latest in shown[:_IN_ONE]:
            clauses.setdefault(_briefly(run, latest), []).append(run.name)
        places = "; ".join(f"{moved} in {listed(names)}" for moved, names in clauses.items())
        more = f"; {len(shown) - _IN_ONE} more in the table" if len(shown) > _IN_ONE else ""
        said.append(
            "Block of lowest entropy, first probe → best checkpoint (else last probe), ± in the table: "
            f"{places}{more}."
        )
    if unknown := [run.name for run, latest in shown if len(latest.entropy_images) < 2]:
        said.append(
            f"Whether the curves of {listed(unknown)} are Us beyond chance is unknown: that takes the values "
            "of at least two images."
        )
    return said


def _lowest(run: Run, latest: Profile) -> str:
    best, students = run.profiles.best, [p for p in run.profiles.students if measured(p)]
    when = f" at epoch {latest.epoch}" if students else ""
    if latest is best:
        when = " at the best checkpoint" + ("" if best.epoch is None else f", epoch {best.epoch},")
    sentence = f"{run.name}'s entropy is lowest {_at(latest)}{when}"
    if phases := _phases(latest):
        sentence = sentence.removesuffix(",") + phases
    if students and students[0] is not latest:
        sentence += f" and {_at(students[0])} at epoch {students[0].epoch}"
    if len(trained := trained_probes(run)) > 1:
        found = evolution(trained)
        first, last = _change(found.first_change, trained, 0), _change(found.last_change, trained, -1)
        sentence += (
            f"; from epoch {trained[0].epoch} to {trained[-1].epoch} its first block changes by {first} "
            f"bits, its last by {last}"
        )
    return f"{sentence.removesuffix(',')}."


def _change(value: float, trained: Sequence[Profile], block: int) -> str:
    return with_error(f"{value:+.2f}", change_error(trained[0], trained[-1], block), 2)


def _briefly(run: Run, latest: Profile) -> str:
    probes = [*[p for p in run.profiles.students if measured(p)][:1], latest]
    ends = dict.fromkeys(f"{signature(p).nadir}{_verdict(p)}" for p in probes)
    return " → ".join(ends)


def _verdict(profile: Profile) -> str:
    return {"U": " (U)", "no U": " (no U)"}.get(shape(profile), "")


def _at(profile: Profile) -> str:
    """Such as "at block 4 ± 0.5 (no U)"; without ± and shape where these are unknown."""
    found = signature(profile)
    verdict = _verdict(profile)
    if found.u_shaped:
        verdict = f" (a U, {found.depth:.3f} ± {found.depth_se:.3f} bits deep)"
    return f"at block {with_error(str(found.nadir), found.nadir_se, 1)}{verdict}"


def _phases(profile: Profile) -> str:
    """The phases of Section 3.1, of a curve that is a U."""
    found = signature(profile)
    if found.compression is None or found.expansion is None:
        return ""
    (first, middle), (_, last) = found.compression, found.expansion
    return f", compressing over blocks {first} to {middle} and expanding over {middle} to {last},"


def _suppressed(runs: Sequence[Run]) -> list[str]:
    """The late-layer suppression and rebound of the paper's Sections 5.2 and 5.4, where they are."""
    trainings = [run for run in runs if trained_probes(run)]
    found = {run.name: evolution(trained_probes(run)) for run in trainings}
    suppressed = [run for run in trainings if found[run.name].last_lowest_until is not None]
    told = []
    for run in suppressed:
        until, rises = found[run.name].last_lowest_until, found[run.name].last_rises_from
        sentence = f"{run.name}'s last block is its lowest until epoch {until}"
        if until == trained_probes(run)[-1].epoch:
            sentence = f"{run.name}'s last block is its lowest at every probe after epoch 0"
        back = rebound(trained_probes(run))
        if rises is not None and back.certain is not False:
            start = "then" if rises == until else f"epoch {rises}"
            height = with_error(f"{back.value:.2f}", back.error, 2)
            sentence += f" and rises from {start} to the end, to {height} bits above its lowest"
        told.append(sentence)
    if not told:
        return []
    said = [f"{sentence}." for sentence in told] if len(told) < 3 else [f"{'; '.join(told[:_IN_ONE])}."]
    low = {run.name for run in suppressed}
    top1, trained = _final_top1(trainings), [run.name for run in trainings if run.kind == "fit"]
    with_it, without = (
        [name for name in trained if name in low],
        [name for name in trained if name not in low],
    )
    known = with_it and without and top1.keys() == set(trained)
    if known and _beyond_chance(trainings, top1, with_it, without):
        difference = fmean(top1[name] for name in with_it) - fmean(top1[name] for name in without)
        said.append(
            f"The mean top-1 of {listed(with_it)} is {_apart(difference)} that of the others: this goes "
            f"along with the low last block, and {len(trained)} runs are no evidence that it comes from it."
        )
    return said


def _final_top1(runs: Sequence[Run]) -> dict[str, float]:
    """Best top-1 of the finished runs by name; {} where they were validated on different data."""
    if len({run.data for run in runs} - {None}) > 1:
        return {}
    found = {run.name: accuracies(run.metrics).get("student, best") for run in runs if run.finished}
    return {name: best.top1 for name, best in found.items() if best}


def _beyond_chance(
    runs: Sequence[Run], top1: Mapping[str, float], some: Sequence[str], others: Sequence[str]
) -> bool:
    """Whether top-1 of some runs and of others differ beyond two standard errors, and only the method does.

    The errors are those of runs, where there are several, and of the images that top-1 is a share of.
    """
    compared = [run for run in runs if run.name in {*some, *others}]
    found = methods(compared)
    if not some or not others or any(differences(a, b) or unknown(a, b) for a, b in combinations(found, 2)):
        return False
    images = {run.name: run.validation_images for run in compared}
    squared = 0.0
    for names in (some, others):
        values = [top1[name] for name in names]
        if any(images[name] is None for name in names):
            return False
        share = fmean(values) / 100
        squared += 100**2 * share * (1 - share) / min(images[name] or 1 for name in names)
        if len(values) > 1:
            squared += float(np.var(values, ddof=1)) / len(values)
    difference = fmean(top1[name] for name in some) - fmean(top1[name] for name in others)
    return abs(difference) > 2 * math.sqrt(squared)


def _distances(runs: Sequence[Run]) -> list[str]:
    """Which student is nearest to its teacher, and whether top-1 goes along with that.

    Only what was measured on the same images compares; of several, finished runs' best checkpoints.
    """
    found = [
        (gap(run.latest, run.profiles.teacher).entropy_distance, run, run.profiles.teacher)
        for run in runs
        if run.latest is not None
        and run.profiles.teacher is not None
        and run.latest.probe_id == run.profiles.teacher.probe_id
        and all(measured(p) and len(p.layers) > 1 for p in (run.latest, run.profiles.teacher))
    ]
    if len(found) > 1:
        found = [item for item in found if item[1].finished and item[1].profiles.best is not None]
    if not found:
        return []
    (_, first, teacher), *others = found
    if any(run.range != first.range or not _one_teacher(teacher, other) for _, run, other in others):
        return []
    place = f"lowest {_at(teacher)} of {len(teacher.layers)}"
    how = "root mean square over matched depth"
    if not others:
        when = "" if first.profiles.best else f" at epoch {first.latest.epoch}" if first.latest else ""
        return [
            f"{first.name}'s entropy{when} is {found[0][0]:.2f} bits from its teacher's ({how}), which is "
            f"{place}."
        ]
    distances = {run.name: f"{distance:.2f}" for distance, run, _ in found}
    least, most = min(distances.values(), key=float), max(distances.values(), key=float)
    near, far = ([name for name, shown in distances.items() if shown == end] for end in (least, most))
    if least == most:
        sentence = (
            f"All of {listed(near)} are {least} bits from the teacher's entropy ({how}), which is {place}"
        )
    else:
        sentence = (
            f"Nearest to the teacher's entropy, {place}, {'is' if len(near) == 1 else 'are'} {listed(near)} "
            f"({least} bits, {how}), farthest {listed(far)} ({most})"
        )
    top1 = _final_top1([run for _, run, _ in found])
    highest = [name for name, value in top1.items() if max(top1.values()) - value < 0.005]
    rest = [name for name in top1 if name not in highest]
    compared = [run for _, run, _ in found]
    if least != most and len(top1) == len(found) and _beyond_chance(compared, top1, highest, rest):
        whose = "its own" if highest == near else " and ".join(f"{name}'s" for name in highest)
        sentence += f"; the highest top-1 is {whose}, and {len(found)} runs are no evidence of a cause"
    return [f"{sentence}."]


def _one_teacher(one: Profile, other: Profile) -> bool:
    """Whether distances to both compare."""
    return one.probe_id == other.probe_id and same_bins(one, other) and alike(one, other)


# --- value ranges -------------------------------------------------------------------------------------


def _one_model_many_ranges(runs: Sequence[Run]) -> list[list[tuple[Run, Profile]]]:
    """Runs that are one model on one set of images under several ranges of the bins.

    In one analysis these are the runs of a label. Beyond it: magnitude does not depend on the range, equal
    magnitudes mean one model and one set of images.
    """
    groups: list[list[tuple[Run, Profile]]] = []
    for run in runs:
        latest = run.latest
        if latest is None or not measured(latest) or not np.isfinite(latest.magnitude).all():
            continue
        same = (group for group in groups if _one_model((run, latest), group[0]))
        if (group := next(same, None)) is None:
            groups.append([(run, latest)])
        else:
            group.append((run, latest))
    return [group for group in groups if len({run.range for run, _ in group}) > 1]


def _one_model(one: tuple[Run, Profile], other: tuple[Run, Profile]) -> bool:
    (run, a), (first, b) = one, other
    if run.path == first.path:
        return run.label == first.label
    equal = a.model == b.model and a.magnitude.shape == b.magnitude.shape
    return equal and np.allclose(a.magnitude, b.magnitude, rtol=1e-6)


def _ranges(runs: Sequence[Run]) -> list[str]:
    """What differs between value ranges: one sentence a model, or for many models one a verdict."""
    groups = _one_model_many_ranges(runs)
    readings = [(group[0][0].label, {run.range: profile for run, profile in group}) for group in groups]
    if len(readings) <= _ONE_BY_ONE:
        return [
            f"{label}'s entropy {_range_verdict([*found.values()])}: {_readings(found)}. {_R}"
            for label, found in readings
        ]
    verdicts: dict[str, dict[str, list[str]]] = {}
    for label, found in readings:
        places = ", ".join(f"{_nadir(profile)} {_RANGES.get(name, name)}" for name, profile in found.items())
        verdict = verdicts.setdefault(_range_verdict([*found.values()]), {})
        verdict.setdefault(places, []).append(label)
    return [
        f"The entropy of each of {listed([label for names in found.values() for label in names])} {verdict}. "
        f"Lowest block: {'; '.join(f'{places} in {listed(names)}' for places, names in found.items())}."
        for verdict, found in verdicts.items()
    ]


def _range_verdict(readings: Sequence[Profile]) -> str:
    """What the ranges decide, as far as the images tell: blocks differ, or agree, beyond two errors."""
    found = [signature(profile) for profile in readings]
    pairs = [
        (abs(a.nadir - b.nadir), 2 * math.hypot(a.nadir_se, b.nadir_se)) for a, b in combinations(found, 2)
    ]
    shapes = {shape(profile) for profile in readings}
    if any(math.isnan(margin) for _, margin in pairs):
        return "is known of too few images to tell what the range of the bins decides"
    if any(apart > margin for apart, margin in pairs):
        return "depends on the range of the bins"
    if len(shapes) > 1:
        return "passes for a U under one range of the bins and not under another"
    if all(apart + margin < 1 for apart, margin in pairs):
        return "has one lowest block and one shape under each range of the bins"
    return "has a lowest block that these images do not fix well enough to tell whether the range moves it"


def _readings(found: Mapping[str, Profile]) -> str:
    return "; ".join(
        f"lowest {_at(profile)} {_RANGES.get(value_range, f'where it is {value_range}')}, "
        f"{_correlation(profile)}{_clipped(profile)}"
        for value_range, profile in found.items()
    )


def _nadir(profile: Profile) -> str:
    """Such as "4 ± 0.5 (no U)"."""
    found = signature(profile)
    return with_error(str(found.nadir), found.nadir_se, 1) + _verdict(profile)


_R = "(r: correlation over blocks with log2 of the magnitude, to which bins of one width tie the entropy.)"
_RANGES = {
    "global": "where all blocks share one",
    "layer": "where each block has its own",
    "scaled": "where blocks are divided by their magnitude",
}


def _clipped(profile: Profile) -> str:
    """Of a range that was given: what part of the values it leaves to the bins at its ends."""
    outside = profile.clipped.mean()
    return f", {100 * outside:.1f} % of the values outside it" if outside > 0 else ""


def _correlation(profile: Profile) -> str:
    """Pearson's r over blocks of entropy and log2 magnitude; unknown where one of them is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (
            np.corrcoef(profile.entropy, np.log2(profile.magnitude))[0, 1]
            if len(profile.layers) > 1
            else np.nan
        )
    return f"r = {r:.2f}" if np.isfinite(r) else "r unknown"
