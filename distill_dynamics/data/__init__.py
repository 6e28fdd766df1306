"""Data modules, the probe set, and the randomness that both share."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.data.cifar import CIFAR10, CIFAR100
    from distill_dynamics.data.fashion_mnist import FashionMNIST, FashionMNISTSample
    from distill_dynamics.data.image_folder import ImageFolder
    from distill_dynamics.data.module import ImageData
    from distill_dynamics.data.probe import ProbeSet, draw_probe
    from distill_dynamics.data.streamed import StreamedImageFolder

# Loaded when they are asked for.
_MODULES = {
    "CIFAR10": "cifar",
    "CIFAR100": "cifar",
    "FashionMNIST": "fashion_mnist",
    "FashionMNISTSample": "fashion_mnist",
    "ImageData": "module",
    "ImageFolder": "image_folder",
    "ProbeSet": "probe",
    "StreamedImageFolder": "streamed",
    "draw_probe": "probe",
}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "FashionMNIST",
    "FashionMNISTSample",
    "ImageData",
    "ImageFolder",
    "ProbeSet",
    "StreamedImageFolder",
    "draw_probe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
