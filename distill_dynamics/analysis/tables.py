"""The curves of an analysis, as rows of table.csv and curves.csv and as lines for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_dynamics.analysis.models import Model, Weights, file_name
from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import bootstrap_interval, scalars, spectral_flatness
from distill_dynamics.dynamics.statistics import SHOWN
from distill_dynamics.files import atomic_write_text
from distill_dynamics.tables import aligned, side_intervals, signature_rows, spectrum_rows


@dataclass(frozen=True)
class Curve:
    """One Profile of the analysis: of which model and weights, under which range."""

    label: str
    model: Model
    weights: Weights
    range: str
    profile: Profile
    input: dict[str, Any]
    """How the images were brought to this model: size, crop, normalisation."""
    further: Sequence[Profile] = ()
    """The same with the floors at further widths of a student."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """With `knn` how good its features are."""

    @property
    def name(self) -> str:
        """Label and place in an evolution."""
        if self.weights.best:
            return f"{self.label}, best"
        return self.label if self.weights.epoch is None else f"{self.label}, epoch {self.weights.epoch}"

    @property
    def path(self) -> str:
        """Where the Profile is, in the folder of the analysis."""
        return f"profiles/{file_name(self.label)}/{self.range}/{self.weights.stem}.npz"

    @property
    def files(self) -> dict[str, Profile]:
        """Its Profiles by where they are, the one with the curves first."""
        stem = self.path.removesuffix(".npz")
        return {self.path: self.profile} | {f"{stem}_width_{p.student_width}.npz": p for p in self.further}

    @property
    def facts(self) -> dict[str, Any]:
        """Its entry in `analysis.json`."""
        return {
            "label": self.label,
            "model": self.model.name,
            "checkpoint": self.weights.checkpoint,
            "pretrained": self.model.pretrained,
            "timm_kwargs": self.model.timm_kwargs,
            "range": self.range,
            "epoch": self.weights.epoch,
            "best": self.weights.best,
            "input": self.input,
            "profile": self.path,
            "further_widths": [*self.files][1:],
            **(
                {"quality": {k: v if v == v else None for k, v in self.quality.items()}}
                if self.quality
                else {}
            ),
        }


def table_entry(curve: Curve, bootstrap: bool) -> dict[str, Any]:
    """One row of table.csv: what the curve is of, and every scalar that is said of it."""
    facts = ("label", "model", "checkpoint", "epoch", "best", "range")
    entry = {name: curve.facts[name] for name in facts}
    entry |= {"images": len(curve.profile.entropy_images), "bins": curve.profile.bins}
    entry |= scalars(curve.profile)
    if bootstrap:
        for side, (low, high) in zip(("left", "right"), side_intervals(curve.profile), strict=True):
            entry |= {f"depth_{side}_low": low, f"depth_{side}_high": high}
    return entry


def block_rows(curve: Curve, bootstrap: bool) -> Iterator[dict[str, Any]]:
    """Rows of curves.csv: the curve block by block, bits and activation units."""
    profile = curve.profile
    kinds = {"": profile.curve, "_se": profile.curve_se}
    shown = [one for one in SHOWN if one.kind in ("images", "set")]
    columns = {
        **{
            f"{one.name}{end}": of(one.name)
            for one in shown
            for end, of in kinds.items()
            if not (end and one.whole)
        },
        "flatness": spectral_flatness(profile),
        "clipped": profile.clipped,
    }
    if bootstrap:
        for one in (one for one in SHOWN if one.kind == "images"):
            low, high = bootstrap_interval(profile.curves[one.name])
            columns |= {f"{one.name}_low": low, f"{one.name}_high": high}
    for row, layer in enumerate(profile.layers):
        facts = {name: curve.facts[name] for name in ("label", "epoch", "best", "range")}
        yield {
            **facts,
            "block": profile.blocks[row],
            "layer": layer,
            **{name: c[row] for name, c in columns.items()},
        }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Columns as they come; what is not known is left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    atomic_write_text(path, text.getvalue())


def printed(curves: Sequence[Curve], bootstrap: bool) -> str:
    """What the curves say, for a terminal; the spectra once for each model, as no range concerns them."""
    several = len({curve.range for curve in curves}) > 1
    named = [(f"{curve.name} ({curve.range})" if several else curve.name, curve.profile) for curve in curves]
    errors = ["± standard error over images (of the lowest block: standard deviation over resamples)"]
    if bootstrap:
        errors.append("in brackets 95 % bootstrap intervals over images, at the block lowest on average")
    spectra = spectrum_rows(list({curve.name: curve.profile for curve in curves}.items()))
    lines = [*aligned(signature_rows(named, bootstrap)), *errors, "", *(aligned(spectra) if spectra else [])]
    return "\n".join(f"  {line}".rstrip() for line in lines)
