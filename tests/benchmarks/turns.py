"""Contestants that take turns, so that whatever else the machine does slows all of them alike.

Each is a process of its own, which waits (and costs nothing) while another has its turn.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from multiprocessing.connection import Connection

import torch

Pause = Callable[[], None]
Contestant = Callable[[Pause], None]
"""Runs steps until it is killed, and calls what it was given before each of them."""


class _Turns:
    """In the contestant's process: waits for a turn, clocks the steps in it, reports them."""

    def __init__(self, pipe: Connection):
        self.pipe, self.left = pipe, 0
        self.seconds: list[float] = []

    def __call__(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.left:
            self.seconds.append(now - self.began)
            self.left -= 1
        if not self.left:
            self.pipe.send(self.seconds)
            try:
                self.seconds, self.left = [], self.pipe.recv()
            except EOFError:  # nobody wants to know any more
                os._exit(1)
        self.began = time.perf_counter()


def _run(contestant: Contestant, pipe: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            contestant(_Turns(pipe))
        except BaseException as error:
            with suppress(OSError):
                pipe.send(repr(error))


def take_turns(
    contestants: Mapping[str, Contestant], *, steps: int, rounds: int, threads: int | None = None
) -> dict[str, list[float]]:
    """Mean seconds of a step in each round, by contestant; one round more, the first, is not counted.

    A turn is `steps` steps and, if these are several, one before them that is not counted: the caches are the
    last contestant's. Steps of seconds, which fill them anew in no time, are better taken one by one: the
    closer in time what is compared, the less a machine that is now faster and now slower matters. Within a
    turn it is the mean, so that what happens every so many steps is not left out.
    """
    uncounted = int(steps > 1)
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    means: dict[str, list[float]] = {name: [] for name in contestants}
    try:
        for name, contestant in contestants.items():
            pipes[name], theirs = context.Pipe()
            process = context.Process(
                target=_run, args=(contestant, theirs, threads or torch.get_num_threads()), name=name
            )
            process.start()
            processes.append(process)
            theirs.close()
            _hear(pipes[name], name)  # one after the other: it is ready
        for number in range(1 + rounds):
            for name, pipe in pipes.items():
                pipe.send(uncounted + steps)
                seconds = _hear(pipe, name)
                if number:
                    means[name].append(statistics.mean(seconds[uncounted:]))
    finally:
        for process in processes:
            process.kill()
    return means


def _hear(pipe: Connection, name: str) -> list[float]:
    try:
        heard = pipe.recv()
    except EOFError as error:
        raise RuntimeError(f"contestant {name!r} died") from error
    if isinstance(heard, str):
        raise RuntimeError(f"contestant {name!r}: {heard}")
    return heard


def by_turns(functions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each round, by function, in this process; after one round to warm up."""
    times = []
    for _ in range(1 + rounds):
        times.append([])
        for function in functions:
            began = time.perf_counter()
            function()
            times[-1].append(time.perf_counter() - began)
    return [list(column) for column in zip(*times[1:], strict=True)]
