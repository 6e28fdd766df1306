"""Whether the device computes what the equations say: against float64 on a CPU.

Letters: B batch, C channels, H W grid, K classes.
"""

import inspect
from collections.abc import Iterator

import torch
from here import Here, Row, relative
from torch import Tensor, nn

from distill_dynamics import Backbone, losses
from distill_dynamics.dynamics import (
    activation_magnitude,
    channel_entropy,
    channel_spectrum,
    profile_model,
)

B, C_S, C_T, SIDE, K, HEADS = 16, 192, 384, 14, 1000, 3
VALUE = {"float32": 1e-5, "bfloat16": 3e-2}
GRADIENT = {"float32": 1e-3, "bfloat16": 3e-2}
LOOSER = {"ProjectorKD": 1e-3}
"""Values in float32 that standardising makes less exact."""


def rows(here: Here) -> Iterator[Row]:
    """Losses, measures, a whole Profile, and a probe where everything is to be deterministic."""
    names = [name for name in losses.__all__ if inspect.isclass(getattr(losses, name))]
    for name in names[:3] if here.small else names:
        yield from _loss(here, name)
    yield from _measures(here)
    yield from _profile(here)


# --- losses -------------------------------------------------------------------------------------------


def _loss(here: Here, name: str) -> Iterator[Row]:
    reference = _ask(name, "cpu", torch.float64)
    if not torch.equal(reference[0], _ask(name, "cpu", torch.float64, seed=1)[0]):
        yield Row(f"{name}: draws its own numbers, others on each device", "left out")
        return
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        expected = reference if kind == "float32" else _ask(name, "cpu", torch.float64, rounded=dtype)
        value, gradient = map(relative, _ask(name, here.device, dtype), expected)
        limit = LOOSER.get(name, VALUE[kind]) if kind == "float32" else VALUE[kind]
        what = f"{name}, {kind}: value off by {value:.0e}, gradient by {gradient:.0e}"
        yield Row(what, max(value / limit, gradient / GRADIENT[kind]), "of limit", at_most=1)


def _ask(
    name: str, device: str, dtype: torch.dtype, rounded: torch.dtype | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The value, and the gradients of all that is read of the student, in one vector.

    In half precision it is asked as in training: under autocast, of models that answer in it.
    """
    loss = _make(name).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    inputs = _inputs(loss)
    for word, x in inputs.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            inputs[word] = x.to(rounded or dtype).to(device, dtype).requires_grad_(word.startswith("student"))
        elif isinstance(x, Tensor):
            inputs[word] = x.to(device)
    torch.manual_seed(seed)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = loss(**inputs)
    value.backward()
    gradients = [x.grad.cpu().double().flatten() for w, x in inputs.items() if w.startswith("student")]
    return value.detach().cpu(), torch.cat(gradients)


def _make(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = getattr(losses, name)
    takes_widths = [*inspect.signature(made).parameters][:2] == ["student_channels", "teacher_channels"]
    loss = made(C_S, C_T) if takes_widths else made()
    if hasattr(loss, "fit"):
        loss.fit([{word: x for word, x in _inputs(loss).items() if word.startswith("teacher")}])
    return loss


def _inputs(loss: nn.Module) -> dict[str, Tensor | float]:
    """Random values of what a loss reads, in float32 on the CPU; the same for every call."""
    generator = torch.Generator().manual_seed(0)
    tokens = SIDE * SIDE
    shapes = {"map": lambda c: (c, SIDE, SIDE), "pooled": lambda c: (c,), "class_token": lambda c: (c,)}
    inputs: dict[str, Tensor | float] = {}
    for word in inspect.signature(loss.forward).parameters:
        who, _, what = word.partition("_")
        if word == "targets":
            inputs[word] = torch.randint(K, (B,), generator=generator)
        elif word == "progress":
            inputs[word] = 0.5
        elif what == "attention":
            inputs[word] = torch.randn(B, HEADS, tokens, tokens, generator=generator).softmax(-1)
        else:
            shape = shapes[what](C_S if who == "student" else C_T) if what in shapes else (K,)
            inputs[word] = (1 if who == "student" else 3) * torch.randn(B, *shape, generator=generator)
    return inputs


# --- measures -----------------------------------------------------------------------------------------


def _measures(here: Here) -> Iterator[Row]:
    x = 3 * torch.randn(8, C_T, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    there, limits = x.to(here.device), (float(x.min()), float(x.max()))
    off = (channel_entropy(there, limits).cpu() - channel_entropy(x.double(), limits)).abs()
    share = float((off > 1e-5).float().mean())
    yield Row("entropy: positions that are off by 1e-5 bits", share, "share", at_most=1e-3)
    spectrum = relative(channel_spectrum(there), channel_spectrum(x.double()))
    yield Row("spectrum", spectrum, "relative", at_most=1e-5)
    magnitude = relative(activation_magnitude(there), activation_magnitude(x.double()))
    yield Row("magnitude", magnitude, "relative", at_most=1e-6)


def _profile(here: Here) -> Iterator[Row]:
    """TF32 is on for convolutions unless a probe switches it off, which its entropy would tell."""
    torch.manual_seed(0)
    small = {"img_size": 28, "patch_size": 7} if here.small else {}
    backbone = Backbone("cait_xxs24_224", timm_kwargs=small)
    images = torch.randn(4, *backbone.input_size)
    expected = profile_model(backbone.double(), images)
    found = profile_model(backbone.float().to(here.device), images)
    off = float(abs(found.entropy - expected.entropy).max())
    yield Row("Profile of a CaiT: entropy", off, "bits", at_most=2e-3)
    off = float(abs(found.magnitude / expected.magnitude - 1).max())
    yield Row("Profile of a CaiT: magnitude", off, "relative", at_most=1e-4)
    torch.use_deterministic_algorithms(True)
    try:
        again, once = (profile_model(backbone, images, student_width=8) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    same = all((again.curves[name] == curve).all() for name, curve in once.curves.items())
    yield Row("a probe under deterministic algorithms, twice: equal to the bit", float(same), "", at_least=1)
