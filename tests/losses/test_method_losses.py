"""Each method against its formula written slowly, in float64; against torchdistill where it has the same."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchdistill.losses import mid_level

from distill_dynamics import losses

B, K = 6, 7


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def logits():
    return 2 * draw(B, K), 3 * draw(B, K, seed=1), torch.tensor([0, 3, 6, 2, 2, 5])


def maps(student=(5, 4, 4), teacher=(8, 4, 4)):
    return draw(B, *student) + 0.5, 2 * draw(B, *teacher, seed=1) - 0.3


def softmax(z, t=1.0):
    e = [math.exp(value / t) for value in z]
    return [value / sum(e) for value in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def tokens(x):
    """[B, C, H, W] → [B, N, C] in numpy."""
    return x.detach().numpy().transpose(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def close(value, slow):
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow, rel=1e-10, abs=1e-12)


# --- logits -------------------------------------------------------------------------------------------


def test_hard_kd():
    s, t, _ = logits()
    close(
        losses.HardKD()(s, t),
        -np.mean([math.log(softmax(a)[int(b.argmax())]) for a, b in zip(s, t, strict=True)]),
    )


def standardised(z):
    mean = sum(z) / K
    deviation = math.sqrt(sum((value - mean) ** 2 for value in z) / (K - 1))
    return [(value - mean) / (1e-7 + deviation) for value in z]


def test_standardised_kd():
    s, t, _ = logits()
    pairs = zip(s.tolist(), t.tolist(), strict=True)
    slow = np.mean([kl(softmax(standardised(b), 2), softmax(standardised(a), 2)) for a, b in pairs]) * 4
    close(losses.StandardisedKD()(s, t), slow)
    stranger = mid_level.LogitStdKDLoss(".", "o", ".", "o", temperature=2.0, alpha=0.0)
    assert 4 * stranger({".": {"o": s}}, {".": {"o": t}}).item() == pytest.approx(slow)


def decoupled_by_hand(a, b, y, t):
    p, q = softmax(b, t), softmax(a, t)
    pair = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
    others = [[v / (1 - r[y]) for k, v in enumerate(r) if k != y] for r in (p, q)]
    return t**2 * pair, t**2 * kl(*others)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 0.5, 1.0), (1, 8, 4.0), (0, 1, 2.0)])
def test_decoupled(alpha, beta, temperature):
    s, t, y = logits()
    rows = [
        decoupled_by_hand(*row, temperature) for row in zip(s.tolist(), t.tolist(), y.tolist(), strict=True)
    ]
    slow = np.mean([alpha * pair + beta * others for pair, others in rows])
    close(losses.DKD(alpha, beta, temperature)(s, t, y), slow)


def test_decoupled_of_the_teachers_own_share_is_soft_kd():
    """KL = target part + (1 - p_y) · part of the others (the paper's Eq. 7)."""
    s, t, y = logits()
    for row in range(B):
        one = slice(row, row + 1)
        beta = 1 - t[one].softmax(1)[0, y[row]].item()
        whole = losses.SoftKD()(s[one], t[one]).item()
        assert losses.DKD(1, beta)(s[one], t[one], y[one]).item() == pytest.approx(whole)


def test_a_sure_student_has_finite_losses():
    """log(softmax) would be -infinity here."""
    s = torch.tensor([[2000.0, -2000.0, 0.0]])
    t, y = torch.tensor([[-1000.0, 1000.0, 0.0]]), torch.tensor([1])
    for loss in (losses.DKD(), losses.NKD(), losses.WTTM(), losses.StandardisedKD()):
        given = (s, t, y) if isinstance(loss, losses.DKD | losses.NKD) else (s, t)
        assert loss(*given).isfinite()


@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, 1.0), (1.5, 2.0)])
def test_normalised(gamma, temperature):
    s, t, y = logits()
    slow = 0.0
    for a, b, own in zip(s.tolist(), t.tolist(), y.tolist(), strict=True):
        slow -= softmax(b)[own] * math.log(softmax(a)[own]) / B
        p, q = ([v for k, v in enumerate(z) if k != own] for z in (b, a))
        p, q = softmax(p, temperature), softmax(q, temperature)
        slow -= gamma * temperature**2 * sum(x * math.log(z) for x, z in zip(p, q, strict=True)) / B
    close(losses.NKD(gamma, temperature)(s, t, y), slow)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist(temperature):
    s, t, _ = logits()
    p, q = (np.array([softmax(row, temperature) for row in z.tolist()]) for z in (s, t))
    by_image = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    by_class = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    slow = temperature**2 * (2 * by_image + 3 * by_class)
    close(losses.DIST(2, 3, temperature)(s, t), slow)
    stranger = mid_level.DISTLoss(".", "o", ".", "o", beta=2, gamma=3, tau=temperature)
    assert stranger({".": {"o": s}}, {".": {"o": t}}).item() == pytest.approx(slow)


@pytest.mark.parametrize("exponent", [0.1, 1.0])
def test_wttm(exponent):
    s, t, _ = logits()
    slow = 0.0
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        power = [v**exponent for v in softmax(b)]
        slow += sum(power) * kl([v / sum(power) for v in power], softmax(a)) / B
    close(losses.WTTM(exponent)(s, t), slow)
    if exponent == 1:
        assert slow == pytest.approx(losses.SoftKD()(s, t).item())


@pytest.mark.parametrize("loss", [losses.StandardisedKD(), losses.DIST(), losses.WTTM(), losses.HardKD()])
def test_log_probabilities_serve_as_logits(loss):
    """As a cache gives them."""
    s, t, _ = logits()
    assert loss(s, t.log_softmax(1)).item() == pytest.approx(loss(s, t).item())


# --- maps ---------------------------------------------------------------------------------------------


def test_fitnet():
    s, t = maps(teacher=(8, 2, 2))
    loss = losses.FitNet(5, 8).double()
    weight, bias = (p.detach().numpy() for p in (loss.projector.weight, loss.projector.bias))
    pooled = F.avg_pool2d(s, 2)
    close(loss(s, t), ((tokens(pooled) @ weight.T + bias - tokens(t)) ** 2).mean())


def test_the_hinge_stops_at_the_best_linear_map():
    """Of all maps from 3 channels the principal components' error is the least (Eckart and Young)."""
    _, t = maps()
    basis = draw(B, 3, 4, 4, seed=2)
    loss = losses.FitNet(3, 8, hinge=True).double()
    loss.fit([{"teacher_map": t[:2]}, {"teacher_map": t[2:]}])
    flat = tokens(t).reshape(-1, 8)
    centred = flat - flat.mean(0)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    kept = centred @ vectors[:, -3:]
    floor = ((kept @ vectors[:, -3:].T - centred) ** 2).mean()
    assert loss.fitted_floor.item() == pytest.approx(floor, rel=1e-9)
    assert floor == pytest.approx(values[:-3].sum() / 8)
    best = torch.from_numpy(kept).view(B, 4, 4, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        loss.projector.weight.copy_(torch.from_numpy(vectors[:, -3:]))
        loss.projector.bias.copy_(torch.from_numpy(flat.mean(0)))
    assert loss(best, t).item() == pytest.approx(0, abs=1e-12)
    assert loss(basis, t).item() > 0


@pytest.mark.parametrize("power", [2.0, 1.0])
def test_attention_transfer(power):
    s, t = maps()
    slow = []
    for x in (s, t):
        activity = (np.abs(x.numpy()) ** power).sum(1).reshape(B, -1)
        slow.append(activity / np.sqrt((activity**2).sum(1, keepdims=True)))
    slow = ((slow[0] - slow[1]) ** 2).mean()
    close(losses.AttentionTransfer(power)(s, t), slow)
    if power == 2:
        stranger = mid_level.ATLoss({}, mode="code")
        assert stranger.compute_at_loss(s, t).item() == pytest.approx(slow)


def cosines(x):
    x = x / np.sqrt((x**2).sum(-1, keepdims=True))
    return x @ np.swapaxes(x, -1, -2)


def test_gram():
    s, t = maps()
    close(losses.Gram()(s, t), ((cosines(tokens(s)) - cosines(tokens(t))) ** 2).mean())


def test_manifold():
    s, t = maps()
    x, y = tokens(s), tokens(t)
    parts = [(x, y), (x.swapaxes(0, 1), y.swapaxes(0, 1)), (x.reshape(1, -1, 5), y.reshape(1, -1, 8))]
    within, across, among = (((cosines(a) - cosines(b)) ** 2).mean() for a, b in parts)
    close(losses.Manifold(samples=1000)(s, t), 4 * within + 0.1 * across + 0.2 * among)


def test_pkd_is_one_minus_the_correlation():
    s, t = maps(student=(8, 4, 4))
    x, y = tokens(s).reshape(-1, 8).T, tokens(t).reshape(-1, 8).T
    slow = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    assert losses.PKD(8, 8)(s, t).item() == pytest.approx(slow, rel=1e-4)  # 1e-5 beside the variance
    close(losses.PKD(8, 8)(s, t), ((z(x) - z(y)) ** 2).mean() / 2)


def z(rows):
    return (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)


def test_masked_generation_sees_no_masked_token_and_counts_them_alone():
    s, t = maps()
    loss = losses.MaskedGeneration(5, 8, mask=0.25).double()
    shown = {}
    loss.generator.register_forward_hook(lambda _, given, out: shown.update(given=given[0], out=out))
    torch.manual_seed(0)
    value = loss(s, t)
    projected = loss.projector(s)
    masked = (shown["given"] != projected).any(1)
    assert masked.flatten(1).sum(1).tolist() == [4] * B
    rows = masked.nonzero().tolist()
    squares = [((shown["out"][b, :, i, j] - t[b, :, i, j]) ** 2).mean().item() for b, i, j in rows]
    close(value, np.mean(squares))
    torch.manual_seed(1)
    assert loss(s, t).item() != value.item()


@pytest.mark.parametrize(("narrow", "wide"), [(5, 8), (8, 5)])
def test_vkd(narrow, wide):
    s, t = draw(B, narrow), 3 * draw(B, wide, seed=1) + 1
    loss = losses.VkD(narrow, wide).double()
    p = loss.projector.weight.detach().numpy()
    np.testing.assert_allclose(p.T @ p if wide >= narrow else p @ p.T, np.eye(min(p.shape)), atol=1e-5)
    target = z_by_row(t.numpy())
    difference = np.abs(s.numpy() @ p.T - target)
    slow = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    close(loss(s, t), slow)
    token = losses.VkDMap(narrow, wide).double()
    token.load_state_dict(loss.state_dict())
    as_maps = (x[..., None, None].expand(-1, -1, 2, 3) for x in (s, t))
    assert token(*as_maps).item() == pytest.approx(slow)


@pytest.mark.parametrize(("narrow", "wide"), [(5, 8), (8, 5), (6, 6)])
def test_a_projection_that_is_trained_and_decayed_stays_orthogonal(narrow, wide):
    """Torch's default for maps that are not square becomes 0 at the first step with weight decay."""
    loss, s, t = losses.VkD(narrow, wide), draw(B, narrow).float(), draw(B, wide, seed=1).float()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-2, weight_decay=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        loss(s, t).backward()
        optimizer.step()
    p = loss.projector.weight.detach()
    product = p.T @ p if wide >= narrow else p @ p.T
    torch.testing.assert_close(product, torch.eye(min(p.shape)), atol=1e-5, rtol=0)


def z_by_row(x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def test_cka():
    s, t = maps()
    x, y = (tokens(a).reshape(-1, a.shape[1]) for a in (s, t))
    x, y = x - x.mean(0), y - y.mean(0)
    k, other = x @ x.T, y @ y.T
    slow = 1 - (k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum())
    close(losses.CKA()(s, t), slow)


def test_cka_of_large_values_does_not_overflow():
    x = 1e6 * maps()[0].float()
    assert losses.CKA()(x, 0.9 * x).item() == pytest.approx(0, abs=1e-5)


def test_similarity_preserving():
    s, t = maps(teacher=(8, 2, 2))
    slow = []
    for x in (s, t):
        flat = x.numpy().reshape(B, -1)
        rows = flat @ flat.T
        slow.append(rows / np.sqrt((rows**2).sum(1, keepdims=True)))
    slow = ((slow[0] - slow[1]) ** 2).mean()
    close(losses.SP()(s, t), slow)


def test_relational():
    s, t = draw(B, 5), 3 * draw(B, 8, seed=1)
    stranger = mid_level.RKDLoss("s", "t", dist_factor=25.0, angle_factor=50.0, reduction="mean")
    expected = stranger({"s": {"output": s}}, {"t": {"output": t}}).item()
    assert losses.RKD()(s, t).item() == pytest.approx(expected)
    distances, angles = [], []
    for x in (s.numpy(), t.numpy()):
        d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
        distances.append(d / d[d > 0].mean())
        angles.append([[[cosine(i - j, k - j) for k in x] for i in x] for j in x])
    slow = 25 * smooth_l1(*distances) + 50 * smooth_l1(*map(np.array, angles))
    close(losses.RKD()(s, t), slow)


def cosine(a, b):
    lengths = np.sqrt((a**2).sum() * (b**2).sum())
    return (a * b).sum() / lengths if lengths else 0.0


def smooth_l1(x, y):
    d = np.abs(x - y)
    return np.where(d < 1, d**2 / 2, d - 0.5).mean()


def test_attention():
    s, t = draw(B, 2, 4, 4).softmax(3), draw(B, 3, 4, 4, seed=1).softmax(3)
    p, q = t.mean(1).tolist(), s.mean(1).tolist()
    slow = np.mean([kl(a, b) for i, j in zip(p, q, strict=True) for a, b in zip(i, j, strict=True)])
    close(losses.AttentionKD()(s, t), slow)


def test_token():
    s, t = maps()
    loss = losses.TokenKD(5, 8).double()
    loss.fit([{"teacher_map": t[:4]}, {"teacher_map": t[4:]}])
    y = tokens(t).reshape(-1, 8)
    y = (y - y.mean(0)) / y.std(0)
    weight, bias = (p.detach().numpy() for p in (loss.projector.weight, loss.projector.bias))
    x = tokens(s).reshape(-1, 5) @ weight.T + bias
    slow = 0.9 * np.mean([1 - cosine(a, b) for a, b in zip(x, y, strict=True)]) + 0.1 * smooth_l1(x, y)
    close(loss(s, t), slow)


# --- targets that fit the student ---------------------------------------------------------------------


def fitted(loss, t):
    loss.double().fit([{"teacher_map": t[:2]}, {"teacher_map": t[2:]}])
    return loss


def components(t):
    flat = tokens(t).reshape(-1, t.shape[1])
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    return flat - flat.mean(0), values[::-1], vectors[:, ::-1]


@pytest.mark.parametrize("whiten", [False, True])
def test_pca_target(whiten):
    s, t = maps(student=(3, 4, 4))
    loss = fitted(losses.PCATarget(3, 8, whiten=whiten, rotate=False), t)
    flat, values, vectors = components(t)
    spread = np.maximum(values[:3], 1e-3 * values[0]) if whiten else np.full(3, values[:3].mean())
    target = flat @ vectors[:, :3] / np.sqrt(spread)
    signs = np.sign((loss.basis.numpy() * vectors[:, :3]).sum(0))  # those of eigenvectors are free
    slow = ((tokens(s).reshape(-1, 3) - target * signs) ** 2).mean()
    close(loss(s, t, 0.5), slow)
    part = loss.cacheable(s, t)
    assert part.shape == (B, 3, 4, 4)
    close(loss(s, part, 0.5), slow)
    assert (target**2).mean() == pytest.approx(1)  # of a student that gives the mean


def test_a_linear_student_of_the_components_reaches_pca_targets_zero():
    _, t = maps()
    loss = fitted(losses.PCATarget(3, 8, rotate=False), t)
    best = loss.cacheable(t[:, :3], t)
    assert loss(best, t, 0.0).item() == pytest.approx(0, abs=1e-20)


def test_a_rank_that_is_a_schedule_counts_the_first_components():
    s, t = maps(student=(3, 4, 4))
    loss = fitted(losses.PCATarget(3, 8, rank=lambda progress: 1 + 2 * progress, rotate=False), t)
    target, (_, values, _) = loss.cacheable(s, t), components(t)
    for progress, count in ((0.0, 1), (0.5, 2), (1.0, 3)):
        error = ((s - target)[:, :count] ** 2).mean().item()
        share = values[:count].mean() / values[:3].mean()  # a student that gives the mean has the loss 1
        close(loss(s, t, progress), error / share)
    with pytest.raises(ValueError, match="rank 5"):
        loss(s, t, 2.0)


@pytest.mark.parametrize("whiten", [False, True])
def test_random_directions_are_a_control_of_the_same_size(whiten):
    s, t = maps(student=(3, 4, 4))
    loss = fitted(losses.PCATarget(3, 8, whiten=whiten, components="random", rotate=False), t)
    flat, basis = tokens(t).reshape(-1, 8), loss.basis.numpy()
    assert np.allclose(basis.T @ basis, np.eye(3), atol=1e-6)
    kept = (flat - flat.mean(0)) @ basis
    assert kept.var(0).sum() < 0.9 * components(t)[1][:3].sum()
    target = kept / (kept.std(0) if whiten else np.sqrt(kept.var(0).mean()))
    close(loss(s, t, 0.5), ((tokens(s).reshape(-1, 3) - target) ** 2).mean())


def test_as_many_components_as_channels_are_a_rotation():
    _, t = maps()
    loss = fitted(losses.PCATarget(8, 8), t)
    part = loss.cacheable(t, t)
    np.testing.assert_array_equal(part, t)  # cannot be told from the map: it is the map
    assert loss(t, part, 0.0).item() == loss(t, t, 0.0).item()
    for rank in (0, 9):
        with pytest.raises(ValueError, match="rank"):
            losses.PCATarget(8, 8, rank=rank)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 20, 28, 36, 64, 192, 320, 384, 576, 768])
def test_hadamard_matrices(size):
    from distill_dynamics.losses.phis_target import hadamard

    h = hadamard(size).numpy()
    assert set(np.unique(h)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(h @ h.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 6, 10, 0])
def test_sizes_without_a_hadamard_matrix(size):
    from distill_dynamics.losses.phis_target import hadamard

    with pytest.raises(ValueError, match="Hadamard"):
        hadamard(size)


def test_phis_target_has_equal_variance_in_every_channel():
    s, t = maps()
    t = t * torch.logspace(-2, 2, 8, dtype=torch.float64)[:, None, None]
    loss = fitted(losses.PHISTarget(5, 8), t)
    with torch.no_grad():
        for parameter in loss.projector.parameters():
            parameter.zero_()
    target = tokens(t).reshape(-1, 8) @ loss.basis.numpy() * loss.scale.numpy()
    np.testing.assert_allclose(target.var(0), 1)
    flat, values, _ = components(t)
    close(loss(s, t), (flat**2).mean() / values.mean())
