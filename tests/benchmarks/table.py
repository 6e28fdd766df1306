"""A benchmark's result: ratios within rounds, beside what they should be."""

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import matplotlib.pyplot as plt
import timm
import torch

DRAWN = {"met": ("#0072b2", "o"), "level": ("0.5", "D"), "missed": ("#d55e00", "X")}
"""Colour and marker of a verdict."""


@dataclass
class Row:
    """One ratio; its value is the median over rounds."""

    what: str
    ratios: Sequence[float]
    target: float | None = None
    at_least: bool = False
    """Whether the target is a lower bound."""
    note: str = ""
    """What was divided: medians with their units."""

    @property
    def value(self) -> float:
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the median: ranks n/2 ± 0.98 √n of the ratios, 95 % were rounds independent; all, if few."""
        ordered, n = sorted(self.ratios), len(self.ratios)
        low = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
        return ordered[low], ordered[n - 1 - low]

    @property
    def verdict(self) -> str:
        """Met or missed, if the whole interval says so; else level."""
        if self.target is None:
            return ""
        good = [x >= self.target if self.at_least else x <= self.target for x in self.interval]
        return "met" if all(good) else "level" if any(good) else "missed"

    @property
    def span(self) -> str:
        return "{:.3f} to {:.3f}".format(*self.interval) if len(self.ratios) > 1 else "one round"

    @property
    def wanted(self) -> str:
        return "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:g}"


def row(
    what: str,
    one: Sequence[float],
    other: Sequence[float],
    target: float | None = None,
    *,
    at_least: bool = False,
    unit: str = "ms",
) -> Row:
    """`one` ÷ `other`, round by round."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    scale = {"ms": 1e3, "s": 1, "MiB": 2**-20, "images/s": 1}[unit]
    note = " ÷ ".join(f"{statistics.median(values) * scale:.4g}" for values in (one, other))
    return Row(what, ratios, target, at_least, f"{note} {unit}")


def machine() -> dict[str, Any]:
    """Where numbers were taken, and with what."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "load before": round(os.getloadavg()[0], 2),
    }


def markdown(rows: Sequence[Row]) -> str:
    lines = ["| what | ratio | interval | rounds | target | |", "|---|---|---|---|---|---|"]
    for r in rows:
        verdict = "**missed**" if r.verdict == "missed" else r.verdict
        cells = [f"{r.what} ({r.note})", f"{r.value:.3f}", r.span, str(len(r.ratios)), r.wanted, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plain(r: Row) -> str:
    """For a terminal, as the row is known."""
    return f"{r.what:74} {r.value:8.3f}  {r.span:18} {r.wanted:8} {r.verdict:7} {r.note}"


def write(folder: Path, rows: Sequence[Row], where: dict[str, Any]) -> None:
    """results.json, results.md and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        {
            "what": r.what,
            "ratio": r.value,
            "rounds": list(r.ratios),
            "target": r.wanted,
            "interval": r.interval,
            "verdict": r.verdict,
            "of": r.note,
        }
        for r in rows
    ]
    (folder / "results.json").write_text(json.dumps({"machine": where, "rows": made}, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(rows) + "\n")
    draw(rows).savefig(folder / "results.png", dpi=150)


def draw(rows: Sequence[Row]) -> plt.Figure:
    """Each ratio as a share of its target: left of the line is met, whichever way the target is meant."""
    drawn = [r for r in rows if r.target is not None]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(drawn) + 1.2), layout="constrained")
    for place, r in enumerate(reversed(drawn)):
        shares = [x / r.target if not r.at_least else r.target / x for x in (*r.interval, r.value)]
        colour, marker = DRAWN[r.verdict]
        axes.plot(shares[:2], [place, place], color=colour, lw=2, alpha=0.5)
        axes.plot(shares[2], place, marker, color=colour)
        axes.annotate(
            f"{r.value:.3g} ({r.wanted})",
            (1.0, place),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.axvline(1, color="0.3", lw=1)
    axes.set_yticks(range(len(drawn)), [r.what for r in reversed(drawn)], fontsize=8)
    axes.set_xlabel("share of the target, median and interval;\nleft of the line it is met")
    axes.set_xscale("log")
    axes.set_xticks([0.5, 0.7, 1, 1.5, 2, 3], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(min(0.45, axes.get_xlim()[0]), max(1.6, axes.get_xlim()[1]))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
