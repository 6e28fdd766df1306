"""Tables of several runs: methods and their accuracies, settings, entropy over the epochs."""

from collections.abc import Sequence
from itertools import compress

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature import change_error, evolution, rebound, signature
from distill_dynamics.report.methods import baseline, baselines, methods, methods_by_run, named_settings
from distill_dynamics.report.records import Run, listed
from distill_dynamics.tables import NOTHING, Row, filled, measured, number, signed, with_error


def results_rows(runs: Sequence[Run]) -> list[Row]:
    """The paper's Table 1: a row a method, with mean ± standard deviation of top-1 over its seeds.

    The difference is that of the best top-1 to the baseline: SoftKD with all other settings equal, else plain
    training; the column is left out where no method has one. So is that of the averaged weights (EMA), each
    run's best as well. A run that has not finished has a row to itself.
    """
    found = methods(runs)
    scores = [
        (method, method.score("best"), method.score("last"), method.score("best", "val/acc1_ema"))
        for method in found
    ]
    if not any(best for _, best, *_ in scores):
        return []
    bases, measured_against = [baseline(method, found) for method in found], baselines(found)
    optional = {
        "EMA best": any(ema for *_, ema in scores),
        "difference": bool(measured_against),
    }
    header = ("method", "layers", "β", "seeds", "top-1 best", "top-1 last", *optional, "epochs", "runs")
    rows: list[Row] = [header]
    for (method, best, last, ema), base in zip(scores, bases, strict=True):
        base_score = base.score() if base else None
        rows.append(
            (
                method.name,
                method.layers or "N/A",
                method.weight or "N/A",
                str(len(method.by_seed("best"))),
                str(best or NOTHING),
                str(last or NOTHING),
                str(ema or NOTHING),
                "baseline"
                if any(method is other for other in measured_against)
                else f"{best.mean - base_score.mean:+.2f}"
                if best and base_score and base is not method
                else NOTHING,
                method.epochs,
                ", ".join(run.name for run in method.runs),
            )
        )
    shown = [optional.get(name, True) for name in header]
    return [tuple(compress(row, shown)) for row in rows]


def config_rows(runs: Sequence[Run]) -> list[Row]:
    """The settings in which the runs differ; what a run does not set is a dash.

    Runs of one method, which differ by seed and machine, share a column; those without a configuration have
    none. What only names a run (name, folder, W&B) is left out.
    """
    settings = {run.name: named_settings(run) for run in runs if run.config}
    owners, columns = methods_by_run(runs), dict[str, list[str]]()
    for name in settings:
        columns.setdefault(owners.get(name, name), []).append(name)
    rows: list[Row] = [("setting", *map(listed, columns.values()))]
    for key in dict.fromkeys(key for setting in settings.values() for key in setting):
        values = {name: setting.get(key, NOTHING) for name, setting in settings.items()}
        if len(set(values.values())) > 1:
            cells = (dict.fromkeys(values[name] for name in names) for names in columns.values())
            rows.append((key, *map(", ".join, cells)))
    return filled(rows)


def evolution_rows(runs: Sequence[Run]) -> list[Row]:
    """How each training's entropy curve changed over its probes after epoch 0; see `evolution`.

    Changes are end minus beginning, ± their standard error over images. Where the last block ends above its
    lowest by no more than chance among the images would have it, it is not said to rise. A run of fewer than
    two such probes has no row.
    """
    rows: list[Row] = [
        (
            "entropy over epochs",
            "epochs",
            "lowest block",
            "first block (bits)",
            "last block (bits)",
            "last block lowest until",
            "rises from",
            "rebound (bits)",
            "U since",
        )
    ]
    for run in runs:
        trained = trained_probes(run)
        if len(trained) < 2:
            continue
        found, back = evolution(trained), rebound(trained)
        rises = None if back.certain is False else found.last_rises_from
        epoch = [
            NOTHING if value is None else str(value)
            for value in (found.last_lowest_until, rises, found.u_since)
        ]
        ends = trained[0], trained[-1]
        nadirs = [signature(profile).nadir for profile in ends]
        rows.append(
            (
                run.name,
                f"{trained[0].epoch} to {trained[-1].epoch}",
                f"{nadirs[0]} → {nadirs[1]}",
                with_error(signed(found.first_change), change_error(*ends, 0), 2),
                with_error(signed(found.last_change), change_error(*ends, -1), 2),
                *epoch[:2],
                with_error(number(back.value, 2), back.error, 2),
                epoch[2],
            )
        )
    return filled(rows)


def trained_probes(run: Run) -> list[Profile]:
    """The student's Profiles after epoch 0, in order, but for those whose entropy is not known."""
    return [profile for profile in run.profiles.students if profile.epoch and measured(profile)]
