"""TokenKD, ClassTokenKD and PooledKD against numpy: the loss, what it is fitted to, grids that differ."""

import numpy as np
import pytest
import torch
from scipy.linalg import eigh, hadamard

from distill_dynamics.losses import ClassTokenKD, PooledKD, TokenKD

LOSSES = {TokenKD: "teacher_map", ClassTokenKD: "teacher_class_token", PooledKD: "teacher_pooled"}
MIXED = torch.randn(8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def features(images, channels, grid=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, *(grid or ()), channels, generator=generator, dtype=torch.float64)
    return x if grid is None else x.movedim(-1, 1)


def correlated(images, grid=None, seed=1):
    """Of 8 channels with means and scales of their own, none of them independent."""
    x = features(images, 8, grid, seed)
    rows = x if grid is None else x.movedim(1, -1)
    rows = rows @ MIXED * torch.logspace(-0.5, 1, 8, dtype=torch.float64) + torch.arange(8) - 3
    return rows if grid is None else rows.movedim(-1, 1)


def rows(x):
    return (x.movedim(1, -1) if x.ndim == 4 else x).reshape(-1, x.shape[1]).numpy()


def made(loss, standardise, teacher):
    torch.manual_seed(0)
    one = loss(5, 8, standardise).double()
    half = len(teacher) // 2
    one.fit([{LOSSES[loss]: teacher[:half]}, {LOSSES[loss]: teacher[half:]}])
    return one


def target_by_hand(x, standardise):
    """Of rows of x, standardised over these rows."""
    centred = x - x.mean(0)
    values, vectors = eigh(np.cov(x.T, bias=True))
    if standardise == "channel":
        return centred / x.std(0)
    if standardise == "whiten":
        return centred @ vectors / np.sqrt(np.maximum(values, 1e-3 * values.max()))
    return centred @ vectors @ hadamard(8).T / np.sqrt(8 * values.mean())


@pytest.mark.parametrize("standardise", ["channel", "whiten", "phi-s"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_numpy(loss, standardise):
    grid = (3, 4) if loss is TokenKD else None
    student, teacher = features(96, 5, grid), correlated(96, grid)
    one = made(loss, standardise, teacher)
    weight, bias = (p.detach().numpy() for p in one.projector.parameters())
    x = rows(student) @ weight.T + bias
    y = one.standardised(torch.from_numpy(rows(teacher))).numpy()
    # An eigenvector may point either way, and so may what is made of it: lengths and angles are the same.
    by_hand = target_by_hand(rows(teacher), standardise)
    np.testing.assert_allclose(y @ y.T, by_hand @ by_hand.T, atol=1e-7)
    if standardise == "channel":
        np.testing.assert_allclose(y, by_hand, rtol=1e-8)
    cosines = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    apart = np.abs(x - y)
    smooth = np.where(apart < 1, apart**2 / 2, apart - 0.5)
    slow = 0.9 * (1 - cosines).mean() + 0.1 * smooth.mean()
    assert one(student, teacher).item() == pytest.approx(slow, rel=1e-9)


@pytest.mark.parametrize("standardise", ["channel", "whiten", "phi-s"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_channel_of_the_target_has_mean_0_and_variance_1(loss, standardise):
    teacher = correlated(96, (3, 4) if loss is TokenKD else None)
    x = rows(teacher)
    y = made(loss, standardise, teacher).standardised(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    whitened = np.minimum(values / (1e-3 * values[0]), 1)  # below 1 where λ is clamped
    assert (whitened < 1).any()
    np.testing.assert_allclose(y.var(0), whitened if standardise == "whiten" else 1, rtol=1e-5)
    covariance = np.cov(y.T, bias=True)
    uncorrelated = np.abs(covariance - np.diag(covariance.diagonal())).max() < 1e-5
    assert uncorrelated == (standardise == "whiten")


def test_phi_s_keeps_the_angles_between_centred_features_and_the_ratios_of_distances():
    teacher = correlated(96)
    y = made(PooledKD, "phi-s", teacher).standardised(teacher).numpy()
    x = teacher.numpy() - teacher.numpy().mean(0)
    ratio = (y**2).sum() / (x**2).sum()
    assert ratio == pytest.approx(8 / np.trace(np.cov(x.T, bias=True)))
    np.testing.assert_allclose(y @ y.T, ratio * x @ x.T, atol=1e-5)


@pytest.mark.parametrize("standardise", ["channel", "whiten", "phi-s"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss, standardise):
    grid = (4, 4) if loss is TokenKD else None
    one = made(loss, standardise, correlated(80, grid))
    student = features(3, 5, grid, seed=5).requires_grad_()
    teacher = correlated(3, (2, 3) if loss is TokenKD else None, seed=6)
    assert torch.autograd.gradcheck(lambda x: one(x, teacher), [student])


GRIDS = [((16, 16), (14, 14)), ((14, 14), (37, 37)), ((7, 9), (9, 7)), ((8, 8), (4, 4)), ((1, 1), (5, 3))]


def pooled_by_hand(x, height, width):
    """Means over windows from floor(i · H / h) to ceil((i + 1) · H / h), as torch documents them."""
    _, _, tall, wide = x.shape
    out = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            window = x[:, :, i * tall // height : -(-(i + 1) * tall // height)]
            out[:, :, i, j] = window[..., j * wide // width : -(-(j + 1) * wide // width)].mean((2, 3))
    return out


@pytest.mark.parametrize(("student", "teacher"), GRIDS)
@pytest.mark.parametrize("standardise", ["channel", "whiten", "phi-s"])
def test_the_target_is_standardised_on_the_grid_that_is_compared(student, teacher, standardise):
    torch.manual_seed(0)
    least = tuple(map(min, student, teacher))
    images = -(-80 // int(np.prod(least)))
    of_student, of_teacher = features(images, 5, student), correlated(images, teacher)
    one = TokenKD(5, 8, standardise).double()
    one.fit([{"student_map": of_student, "teacher_map": of_teacher}])
    seen = one.cacheable(of_student, of_teacher)
    x = pooled_by_hand(of_teacher.numpy(), *least)
    np.testing.assert_allclose(seen, x, atol=1e-9)
    y = one.standardised(torch.from_numpy(rows(torch.from_numpy(x)))).numpy()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    if standardise != "whiten":
        np.testing.assert_allclose(y.var(0), 1, rtol=1e-5)
    by_hand = torch.from_numpy(pooled_by_hand(of_student.numpy(), *least))
    assert one(of_student, of_teacher).item() == pytest.approx(one(by_hand, seen).item(), rel=1e-9)


def test_whitening_asks_for_ten_vectors_a_channel():
    with pytest.raises(ValueError, match="whiten: 79 vectors of 8 channels are too few"):
        PooledKD(5, 8, "whiten").fit([{"teacher_pooled": correlated(79)}])
    PooledKD(5, 8, "whiten").fit([{"teacher_pooled": correlated(80)}])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="channel, whiten or phi-s, not 'pca'"):
        PooledKD(5, 8, "pca")
    with pytest.raises(ValueError, match=r"phi-s: no Hadamard matrix of size 6 .*; channel takes any width"):
        ClassTokenKD(5, 6, "phi-s")
    with pytest.raises(ValueError, match=r"the teacher's features \[4, 7\] should have 8 channels"):
        PooledKD(5, 8)(torch.zeros(4, 5), torch.zeros(4, 7))
    with pytest.raises(ValueError, match="the same everywhere"):
        PooledKD(5, 8).fit([{"teacher_pooled": torch.ones(20, 8)}])
    with pytest.raises(ValueError, match="not all finite"):
        PooledKD(5, 8).fit([{"teacher_pooled": torch.full((20, 8), torch.inf)}])


@pytest.mark.parametrize("standardise", ["channel", "whiten", "phi-s"])
def test_autocast_does_not_touch_the_target(standardise):
    teacher = correlated(96).float()
    one = PooledKD(5, 8, standardise)
    one.fit([{"teacher_pooled": teacher}])
    with torch.autocast("cpu", torch.bfloat16):
        inside = one.standardised(teacher)
    assert torch.equal(inside, one.standardised(teacher))


def test_state_of_before_the_choice_is_loaded():
    """`mean`, `std` and the projector, as TokenKD alone had them."""
    state = {"mean": torch.rand(8), "std": torch.rand(8), "projector.weight": torch.rand(8, 5)}
    state["projector.bias"] = torch.rand(8)
    one = TokenKD(5, 8)
    assert [*one.state_dict()] == ["mean", "std", "projector.weight", "projector.bias"]
    one.load_state_dict(state)
    x = torch.rand(2, 8, 3, 3)
    expected = (x.movedim(1, -1) - state["mean"]) / state["std"]
    assert torch.equal(one.standardised(x.movedim(1, -1)), expected)
