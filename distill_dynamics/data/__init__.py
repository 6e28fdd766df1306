"""Data modules, the probe set, and the randomness that both share."""

from typing import TYPE_CHECKING

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.data.cifar import CIFAR10, CIFAR100
    from distill_dynamics.data.fashion_mnist import FashionMNIST, FashionMNISTSample
    from distill_dynamics.data.image_folder import ImageFolder
    from distill_dynamics.data.module import ImageData
    from distill_dynamics.data.probe import ProbeSet, draw_probe
    from distill_dynamics.data.streaming.folder import StreamedImageFolder
    from distill_dynamics.data.unlabelled_folder import UnlabelledFolder

_HOMES = {
    "CIFAR10": "cifar",
    "CIFAR100": "cifar",
    "FashionMNIST": "fashion_mnist",
    "FashionMNISTSample": "fashion_mnist",
    "ImageData": "module",
    "ImageFolder": "image_folder",
    "ProbeSet": "probe",
    "StreamedImageFolder": "streaming.folder",
    "UnlabelledFolder": "unlabelled_folder",
    "draw_probe": "probe",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
