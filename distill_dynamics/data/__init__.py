"""Data modules, the probe set, and the randomness that both share."""

from distill_dynamics.data.cifar import CIFAR10, CIFAR100
from distill_dynamics.data.fashion_mnist import FashionMNIST, FashionMNISTSample
from distill_dynamics.data.image_folder import ImageFolder
from distill_dynamics.data.module import ImageData
from distill_dynamics.data.probe import ProbeSet, draw_probe
from distill_dynamics.data.streamed import StreamedImageFolder

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
