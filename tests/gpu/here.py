"""The device that is looked at: its clock, its waits, and what a row says of it."""

import contextlib
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Row:
    """One thing that was measured or compared, beside what it should be."""

    what: str
    value: float | str
    """A number, or a word in its place: why there is none."""
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    section: str = ""

    @property
    def verdict(self) -> str:
        """Of a number with a limit; what failed is to be looked at, too."""
        if isinstance(self.value, str):
            return "LOOK" if self.value.startswith("failed") else ""
        if self.at_least is None and self.at_most is None:
            return ""
        low = self.at_least is None or self.value >= self.at_least
        high = self.at_most is None or self.value <= self.at_most
        return "ok" if low and high else "LOOK"  # NaN is neither

    @property
    def wanted(self) -> str:
        limits = (("≥", self.at_least), ("≤", self.at_most))
        return " ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        return (
            f"{self.section:10}  {self.what:66}  {value:>9} {self.unit:9} {self.wanted:18} {self.verdict}"
        ).rstrip()


class Here:
    """A device, and how much is asked of it.

    Args:
        device: "cuda" or "cpu".
        small: the least that shows that a check runs: what is measured then says nothing.
        seconds_left: until the end of what was granted.
    """

    def __init__(
        self, device: str = "cuda", small: bool = False, seconds_left: Callable[[], float] = lambda: 1e9
    ) -> None:
        self.device, self.small, self.seconds_left = device, small, seconds_left

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def of_gpu(self, limit: float) -> float | None:
        """What is expected of a large GPU at full size, and of nothing else."""
        return limit if self.is_gpu and not self.small else None

    def finish(self) -> None:
        """Wait until everything that was asked for is done."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], warm: int = 3, times: int = 10) -> float:
        """The median of single calls, each from an idle device until it is idle again."""
        if self.small:
            warm, times = 1, 2
        for _ in range(warm):
            work()
        taken = []
        for _ in range(times):
            self.finish()
            began = time.perf_counter()
            work()
            self.finish()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    @contextlib.contextmanager
    def waits(self) -> Iterator[list[str]]:
        """The places at which the host waits for the GPU inside: none are seen on a CPU.

        A place is the innermost line of this package, or of whoever waited if none of its is on the way.
        """
        found: list[str] = []

        def show(message: Warning | str, category: type, filename: str, lineno: int, *rest: Any) -> None:
            if "synchroniz" not in str(message):
                return
            ours = [f for f in traceback.extract_stack() if "distill_dynamics/" in f.filename]
            frame = ours[-1] if ours else None
            found.append(f"{frame.filename}:{frame.lineno}" if frame else f"{filename}:{lineno}")

        if not self.is_gpu:
            yield found
            return
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show  # type: ignore[assignment]
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """|value - reference| / |reference|, of all numbers together."""
    reference = reference.detach().cpu().double()
    return float((value.detach().cpu().double() - reference).norm() / reference.norm())
