"""A benchmark's result: ratios within rounds, beside what they should be."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import matplotlib.pyplot as plt
import numpy as np
import timm
import torch


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
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

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
    lines = ["| what | ratio | rounds | target | |", "|---|---|---|---|---|"]
    for r in rows:
        verdict = {None: "", True: "met", False: "**missed**"}[r.met]
        span = f"{min(r.ratios):.3f} to {max(r.ratios):.3f}" if len(r.ratios) > 1 else "one"
        lines.append(f"| {r.what} ({r.note}) | {r.value:.3f} | {span} | {r.wanted} | {verdict} |")
    return "\n".join(lines)


def plain(r: Row) -> str:
    """For a terminal, as the row is known."""
    verdict = {None: "", True: "met", False: "MISSED"}[r.met]
    span = f"{min(r.ratios):.3f} to {max(r.ratios):.3f}" if len(r.ratios) > 1 else "one round"
    return f"{r.what:74} {r.value:8.3f}  {span:20} {r.wanted:8} {verdict:7} {r.note}"


def write(folder: Path, rows: Sequence[Row], where: dict[str, Any]) -> None:
    """results.json, results.md and results.png."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        {
            "what": r.what,
            "ratio": r.value,
            "rounds": list(r.ratios),
            "target": r.wanted,
            "met": r.met,
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
        shares = np.array([x / r.target if not r.at_least else r.target / x for x in (*r.ratios, r.value)])
        colour = "#0072b2" if r.met else "#d55e00"
        axes.plot([shares[:-1].min(), shares[:-1].max()], [place, place], color=colour, lw=2, alpha=0.5)
        axes.plot(shares[-1], place, "o" if r.met else "X", color=colour)
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
    axes.set_xlabel("share of the target (dot: median, bar: rounds); left of the line it is met")
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
