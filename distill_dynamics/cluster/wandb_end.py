"""The end of W&B's record. A server that has gone away in mid-run must not keep a job from ending."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distill_dynamics.runs import lease

UPLOAD_S = 300.0
"""Seconds that W&B has at the end of a run to upload what it holds; the rest is on disk, for `wandb sync`."""


def close_wandb(status: int, within: float, preempted: bool = False) -> bool:
    """Close W&B's record, if one is open. False if it still uploads after so many seconds.

    W&B's `finish_timeout` is one number, fixed as the run begins; a preempted run has less time than others.
    """
    wandb = sys.modules.get("wandb")  # what no run has imported has no record open
    if wandb is None or wandb.run is None:
        return True

    def close() -> None:
        with suppress(Exception):  # its own process may have been asked to stop, too
            if preempted and wandb.run is not None:
                wandb.run.mark_preempting()
            wandb.finish(status)

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(within)
    return not closing.is_alive()


@contextmanager
def wandb_closed_in_time() -> Iterator[None]:
    """Around a whole command: its W&B record is closed when it ends, or the process is ended without."""
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        if not close_wandb(status, UPLOAD_S):
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            _end(status)
        raise
    if not close_wandb(0, UPLOAD_S):
        _end(0)


def _end(status: int) -> None:
    """What Python does at its end would wait for W&B."""
    print(
        f"W&B has not taken all in {UPLOAD_S:.0f} s: `wandb sync` uploads the rest from the run's wandb/",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    lease.release()
    os._exit(status)
