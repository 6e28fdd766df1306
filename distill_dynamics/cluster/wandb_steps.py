"""How far W&B's own count of steps has come in the files of a run: a file that follows must not begin anew.

W&B numbers what is logged, and `wandb sync` takes a step that it has for one that was sent twice. Online, its
server says where a run that goes on has stopped. Offline nobody does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER, _START = 32768, 7, 7
"""Of the format, LevelDB's log: bytes of a block, of a record's header, and of the file's beginning."""


def next_step(run_dir: Path) -> int:
    """The step that comes after all those in the run's `wandb/`; 0 where there is none."""
    return max((_last_step(path) for path in (run_dir / "wandb").glob("*run-*/run-*.wandb")), default=-1) + 1


def _last_step(path: Path) -> int:
    """Of one file; of one that was cut short, as far as it goes. -1 without any."""
    from wandb.proto import wandb_internal_pb2

    last = -1
    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(content)
        except Exception:  # protobuf's own, of an implementation that may be another
            break
        if record.WhichOneof("record_type") == "history":
            last = max(last, record.history.step.num)
    return last


def _records(data: bytes) -> Iterator[bytes]:
    at, begun = _START, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # too little for a header: filled with zeros
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += _HEADER
        if kind == 0 or at + length > len(data):
            return
        begun = data[at : at + length] if kind in (1, 2) else begun + data[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or its end
            yield begun
