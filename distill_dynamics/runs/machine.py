"""What a run is computed on, in words, as far as Linux tells; without torch."""

import os
import platform
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

_CPU, _GPUS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")


def machine() -> str:
    """Such as "AMD EPYC 7R13, 16 CPUs, 8 x NVIDIA H200": the CPUs that this process may use, and every GPU.

    The machine's own name is left out: a page is shown to others.
    """
    cpu = _first(_CPU, r"^model name\s*:\s*(.+)$") or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folders = sorted(_GPUS.glob("*/information"))
    gpus = Counter(name for folder in folders if (name := _first(folder, r"^Model:\s*(.+)$")))
    named = [" ".join(cpu.split()), f"{cores} CPU{'s' if cores > 1 else ''}"]
    return ", ".join([*filter(None, named), *(f"{count} x {name}" for name, count in gpus.items())])


def _first(path: Path, pattern: str) -> str:
    with suppress(OSError):
        if found := re.search(pattern, path.read_text(errors="replace"), re.MULTILINE):
            return found[1].strip()
    return ""
