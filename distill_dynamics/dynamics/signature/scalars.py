"""What the dataclasses of this room say, as named numbers for a logger."""

from dataclasses import asdict
from typing import Any

import numpy as np

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature.massive import massive_activations
from distill_dynamics.dynamics.signature.shape import signature
from distill_dynamics.dynamics.signature.spectrum import spectrum_signature


def scalars(profile: Profile) -> dict[str, float]:
    """What `signature`, `spectrum_signature` and `massive_activations` say, by name; see `numbers`."""
    massive = {f"massive_{name}": value for name, value in numbers(massive_activations(profile)).items()}
    return numbers(signature(profile)) | numbers(spectrum_signature(profile)) | massive


def numbers(found: Any) -> dict[str, float]:
    """Fields of a dataclass of this room as floats, for logging: yes is 1, no 0; unknown is left out."""
    values = {name: float(value) for name, value in asdict(found).items() if isinstance(value, (int, float))}
    return {name: value for name, value in values.items() if np.isfinite(value)}
