"""Batches one ahead on CUDA, with stand-ins for its streams."""

import gc
import weakref
from contextlib import contextmanager, suppress

import pytest
import torch

from distill_dynamics.data import ahead
from distill_dynamics.errors import UserError


def test_on_cuda_an_error_that_was_seen_to_keeps_nothing_alive(monkeypatch):
    class Workers:
        pass

    workers = Workers()
    ended = weakref.ref(workers)

    def items(held):
        raise UserError(f"none of {held}")
        yield

    monkeypatch.setattr(ahead, "_side_stream", lambda device: None)
    gc.disable()
    try:
        with suppress(UserError):
            next(ahead.made_ahead(items(workers), lambda item: (item,), torch.device("cuda")))
        del workers
        assert ended() is None
    finally:
        gc.enable()


def test_on_cuda_a_batch_is_made_before_the_one_before_it_is_used(monkeypatch):
    """With a stand-in for CUDA that writes down what happens in which stream."""
    told = []

    class Stream:
        made = 0

        def record_event(self):
            self.made += 1
            return f"event {self.made}"

        def wait_event(self, event):
            told.append(f"wait for {event}")

    class Part(str):
        def record_stream(self, stream):
            assert stream is current
            told.append(f"{self} is in use")

    side, current = Stream(), Stream()

    @contextmanager
    def within(stream):
        assert stream is side
        told.append("beside")
        yield
        told.append("again")

    monkeypatch.setattr(ahead, "_side_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)

    def make(n):
        told.append(f"make {n}")
        return Part(f"images {n}"), {"index": Part(f"index {n}")}

    def items():
        yield from [1, 2]
        raise UserError("no third")

    def steps():
        for images, _ in ahead.made_ahead(items(), make, torch.device("cuda")):
            told.append(f"step with {images}")

    with pytest.raises(UserError, match="no third"):
        steps()
    assert told == [
        "beside", "make 1", "again",
        "beside", "make 2", "again",
        "wait for event 1", "images 1 is in use", "index 1 is in use", "step with images 1",
        "wait for event 2", "images 2 is in use", "index 2 is in use", "step with images 2",
    ]  # fmt: skip
