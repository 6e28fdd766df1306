"""What names that are loaded late bring with them: each in a fresh interpreter."""

import subprocess
import sys

import pytest

from distill_dynamics import dynamics

HEAVY = {"lightning", "matplotlib", "pandas", "scipy", "timm", "torchmetrics", "torchvision", "wandb"}
NO_TORCH = HEAVY | {"torch"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import distill_dynamics.dynamics as d; dir(d)", NO_TORCH),
        ("from distill_dynamics.dynamics import Profile", NO_TORCH),
        (
            "from distill_dynamics.dynamics import channel_entropy, channel_spectrum, activation_magnitude",
            HEAVY,
        ),
    ],
)
def test_a_room_loads_what_it_needs(statement, absent):
    shown = f"{statement}; import sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not absent & set(loaded)


def test_names_are_known_before_they_are_loaded():
    code = "from distill_dynamics import dynamics as d; print(sorted(set(d.__all__) - set(dir(d))))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dynamics.nothing  # noqa: B018
