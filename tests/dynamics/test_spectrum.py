import numpy as np
import numpy_dynamics
import pytest
import torch

from distill_dynamics.dynamics import activation_magnitude, channel_spectrum
from distill_dynamics.dynamics.measures import spectrum as spectrum_module


def random_map(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_outlier():
    x = random_map(2, 96, 4, 3) * 0.01
    x[0, 5, 1, 1] = 300.0
    x[:, 7] += 40
    return x


MAPS = {
    "random even": lambda: random_map(3, 384, 5, 4),
    "random odd": lambda: random_map(3, 37, 5, 4),
    "C = 1": lambda: random_map(3, 1, 5, 4),
    "C = 2": lambda: random_map(3, 2, 5, 4),
    "C = 3": lambda: random_map(3, 3, 5, 4),
    "prime C": lambda: random_map(3, 193, 5, 4),
    "constant": lambda: torch.full((2, 64, 3, 3), -1.7),
    "one-hot": lambda: torch.eye(64)[:36].reshape(1, 36, 8, 8),
    "outlier": with_outlier,
    "offset": lambda: random_map(4, 384, 7, 7) + 20,
    "float16": lambda: random_map(2, 96, 4, 4).half(),
    "float16, large": lambda: (random_map(2, 96, 4, 4) * 10_000).half(),
    "bfloat16": lambda: random_map(2, 96, 4, 4).bfloat16(),
    "float64": lambda: random_map(2, 96, 4, 4).double(),
    "channels last": lambda: random_map(2, 5, 4, 96).permute(0, 3, 1, 2),
    "every second": lambda: random_map(4, 192, 8, 8)[::2, ::2, ::2, 1::2],
    "expanded": lambda: random_map(1, 96, 1, 4).expand(3, 96, 4, 4),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_spectrum_is_that_of_numpy_fft(name, autocast):
    x = MAPS[name]()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = channel_spectrum(x)
    assert ours.shape == (x.shape[1],)
    expected = numpy_dynamics.image_spectra(x.double().numpy()).mean(axis=0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_magnitude_is_that_of_numpy(name, autocast):
    x = MAPS[name]()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = activation_magnitude(x)
    assert ours.shape == ()
    np.testing.assert_allclose(ours.item(), np.abs(x.double().numpy()).mean(), rtol=1e-5)


def test_a_wave_along_the_channels_is_half_a_line_at_its_frequency():
    wave = 3 * torch.cos(2 * torch.pi * 5 * torch.arange(32) / 32)
    expected = np.zeros(32)
    expected[[5, 27]] = 1.5
    spectrum = channel_spectrum(wave.reshape(1, 32, 1, 1).expand(2, 32, 3, 3))
    np.testing.assert_allclose(spectrum.numpy(), expected, atol=1e-6)


def test_the_transform_runs_along_channels_not_over_space():
    x = random_map(2, 24, 6, 6)
    shuffled = x.flatten(2)[:, :, torch.randperm(36)].unflatten(2, (6, 6))
    torch.testing.assert_close(channel_spectrum(shuffled), channel_spectrum(x))


@pytest.mark.parametrize("chunk", [1, 100, 10**9])
def test_chunks_of_any_size_give_the_same(monkeypatch, chunk):
    x = random_map(5, 12, 3, 7)
    monkeypatch.setattr(spectrum_module, "CHUNK", chunk)
    expected = numpy_dynamics.image_spectra(x.numpy()).mean(axis=0)
    np.testing.assert_allclose(channel_spectrum(x).numpy(), expected, rtol=1e-5)
