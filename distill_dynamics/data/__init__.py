"""Data modules, the probe set, and the randomness that both share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.data.cifar import CIFAR10 as CIFAR10
    from distill_dynamics.data.cifar import CIFAR100 as CIFAR100
    from distill_dynamics.data.fashion_mnist import FashionMNIST as FashionMNIST
    from distill_dynamics.data.fashion_mnist import FashionMNISTSample as FashionMNISTSample
    from distill_dynamics.data.image_folder import ImageFolder as ImageFolder
    from distill_dynamics.data.module import ImageData as ImageData
    from distill_dynamics.data.probe import ProbeSet as ProbeSet
    from distill_dynamics.data.probe import draw_probe as draw_probe
    from distill_dynamics.data.streamed import StreamedImageFolder as StreamedImageFolder

_HOMES = {
    "CIFAR10": "distill_dynamics.data.cifar",
    "CIFAR100": "distill_dynamics.data.cifar",
    "FashionMNIST": "distill_dynamics.data.fashion_mnist",
    "FashionMNISTSample": "distill_dynamics.data.fashion_mnist",
    "ImageData": "distill_dynamics.data.module",
    "ImageFolder": "distill_dynamics.data.image_folder",
    "ProbeSet": "distill_dynamics.data.probe",
    "StreamedImageFolder": "distill_dynamics.data.streamed",
    "draw_probe": "distill_dynamics.data.probe",
}
"""Each name by the module that has it, which is imported when the name is first used."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
