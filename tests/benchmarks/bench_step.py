"""A training step of this tool beside the same step by others."""

from collections.abc import Iterator
from functools import partial

from contestants import ENDS, config, this_tool
from peers import by_hand, timm_task, torchdistill
from sizes import SIZES
from table import Row, row
from turns import take_turns


def rows(small: bool) -> Iterator[Row]:
    """A round of the large size is half a minute on two cores."""
    for size, made in SIZES.items():
        paper = size != "Fashion-MNIST size"
        if small and paper:
            continue
        seconds = take_turns(
            {
                "ours": partial(this_tool, settings=config(size)),
                "timm": partial(timm_task, size=made),
                "torchdistill": partial(torchdistill, size=made),
                "ours, spectral": partial(this_tool, settings=config(size, term=ENDS)),
                "by hand, spectral": partial(by_hand, size=made),
            },
            **made.turns(small),
        )
        what = f"{made.told(size)}: step ÷ "
        spectral = seconds["ours, spectral"], seconds["by hand, spectral"]
        yield row(f"{what}loop by hand", *spectral, 0.8 if paper else 1.02)
        yield row(f"{what}timm.task", seconds["ours"], seconds["timm"], 0.6 if paper else 0.97)
        yield row(f"{what}torchdistill", seconds["ours"], seconds["torchdistill"], 0.8 if paper else 1.0)
