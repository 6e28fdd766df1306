"""Two "hosts" on this machine: network namespaces that share nothing but a cable between them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from slurm_here import installed

NETWORK = "10.77.0"


@dataclass
class Host:
    """A network namespace: its name, and its address on the cable, `eth0`."""

    name: str
    address: str

    def inside(self, *command: object) -> list[object]:
        """The command line that runs a command there."""
        return ["ip", "netns", "exec", self.name, *command]

    def processes(self) -> list[int]:
        return [int(number) for number in _ip("netns", "pids", self.name).split()]

    def goes_down(self) -> None:
        """Every process of it ends at once."""
        while numbers := self.processes():
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make them, and take them away afterwards with all that runs there."""
    installed("ip", "iproute2")
    hosts = tuple(Host(f"dd{os.getpid()}-{n}", f"{NETWORK}.{n}") for n in (1, 2))
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        first, second = hosts
        cable = ("type", "veth", "peer", "name", "eth0", "netns", second.name)
        _ip("link", "add", "eth0", "netns", first.name, *cable)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield first, second
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):  # one that was not made
                host.goes_down()
                _ip("netns", "delete", host.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
