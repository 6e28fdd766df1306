"""kNN, linear probe and effective rank of features, each against another way to the same number."""

import numpy as np
import pytest
import torch
from neighbours import knn_by_hand
from scipy.optimize import minimize
from scipy.special import logsumexp

from distill_dynamics.dynamics.measures import knn
from distill_dynamics.dynamics.measures.feature_quality import feature_quality, halves
from distill_dynamics.dynamics.measures.knn import knn_predictions
from distill_dynamics.dynamics.measures.linear_probe import PENALTY, fitted, linear_predictions


def clusters(n, d=12, k=4, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, k, n)
    centres = np.random.default_rng(7).normal(size=(k, d))
    return torch.tensor(centres[targets] + spread * rng.normal(size=(n, d))), torch.tensor(targets)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (7, 10.0)])
def test_knn_is_a_loop_over_queries(k, temperature, monkeypatch):
    monkeypatch.setattr(knn, "_AT_ONCE", 1000)  # in several parts
    (bank, targets), (queries, _) = clusters(90), clusters(60, seed=1)
    found = knn_predictions(bank, targets, queries, k, temperature)
    assert found.tolist() == knn_by_hand(bank, targets, queries, k, temperature)


def test_a_bank_smaller_than_k_votes_as_a_whole():
    (bank, targets), (queries, _) = clusters(9), clusters(20, seed=1)
    assert knn_predictions(bank, targets, queries).tolist() == knn_by_hand(bank, targets, queries, 9, 0.07)


def test_of_equally_near_images_the_first_ones_vote_and_of_equal_votes_the_smallest_class_wins():
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[3.0, 0.0]])
    for targets, k, expected in (
        ([2, 1, 1, 0, 0], 1, 2),
        ([2, 1, 1, 0, 0], 2, 1),
        ([2, 0, 0, 0, 0], 3, 0),
        ([1, 2, 2, 1, 0], 4, 1),
    ):
        assert knn_predictions(bank, torch.tensor(targets), query, k).tolist() == [expected]


def test_knn_tells_features_apart_that_hardly_differ():
    (bank, targets), (queries, _) = clusters(60), clusters(40, seed=1)
    offset = 1e4 * torch.ones(12, dtype=torch.float64)  # cosines of 1 - 1e-8: the same to float32
    found = knn_predictions(bank + offset, targets, queries + offset)
    assert found.tolist() == knn_by_hand(bank + offset, targets, queries + offset, 20, 0.07)
    assert len(set(found.tolist())) > 1


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_knn_does_not_see_how_long_features_are(scale):
    (bank, targets), (queries, _) = clusters(60), clusters(40, seed=1)
    found = knn_predictions(scale * bank, targets, scale * queries)
    assert found.tolist() == knn_by_hand(bank, targets, queries, 20, 0.07)


def test_the_linear_probe_is_at_the_minimum_that_scipy_finds():
    (bank, targets), (queries, _) = clusters(150), clusters(80, seed=1)
    bank[:, 3] = 5.0  # it does not vary, and is to play no part
    x = np.asarray(bank)
    mean, std = x.mean(0), x.std(0)
    std[3] = np.inf
    x, classes = (x - mean) / std, np.eye(4)[np.asarray(targets)]

    def loss(flat):
        w, b = flat[:-4].reshape(12, 4), flat[-4:]
        z = x @ w + b
        return (logsumexp(z, axis=1) - (z * classes).sum(1)).mean() + PENALTY / 2 * (w**2).sum()

    best = minimize(loss, np.zeros(52), method="BFGS", options={"gtol": 1e-7}).x
    w, b = fitted(torch.tensor(x), targets, PENALTY)
    np.testing.assert_allclose(w, best[:-4].reshape(12, 4), atol=2e-4)
    np.testing.assert_allclose(b - b.mean(), best[-4:] - best[-4:].mean(), atol=2e-4)
    shown = (np.asarray(queries) - mean) / std
    expected = (shown @ best[:-4].reshape(12, 4) + best[-4:]).argmax(1)
    assert linear_predictions(bank, targets, queries).tolist() == expected.tolist()


def test_the_linear_probe_works_in_inference_mode_with_more_features_than_images():
    (bank, targets), (queries, _) = clusters(20, d=50), clusters(20, d=50, seed=1)
    with torch.inference_mode():
        inside = linear_predictions(bank.clone(), targets, queries.clone())
    assert inside.tolist() == linear_predictions(bank, targets, queries).tolist()


def test_halves_have_every_class_in_equal_shares_in_the_order_of_the_images():
    targets = torch.tensor([1, 0, 1, 0, 2, 1, 0, 1, 1])
    assert halves(targets).tolist() == [True, True, True, True, True, True, False, False, False]
    drawn = torch.randint(0, 7, (500,), generator=torch.Generator().manual_seed(0))
    parted = halves(drawn)
    for label in range(7):
        of_class = parted[drawn == label]
        n = int(of_class.sum())
        assert n == -(-len(of_class) // 2)
        assert of_class[:n].all()


def test_quality_counts_hits_and_directions():
    (bank, targets), (queries, truth) = clusters(100, spread=0.8), clusters(70, spread=0.8, seed=1)
    found = feature_quality(bank, targets, queries, truth)
    near = knn_by_hand(bank, targets, queries, 20, 0.07)
    assert found["knn1"] == pytest.approx(100 * np.mean(np.array(near) == truth.numpy()))
    linear = linear_predictions(bank, targets, queries)
    assert found["linear1"] == pytest.approx(100 * (linear == truth).double().mean().item())
    every = np.concatenate([bank, queries])
    p = np.linalg.svd(every - every.mean(0), compute_uv=False) ** 2
    p /= p.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert 25 < found["knn1"] <= 100


def test_a_single_feature_is_one_direction():
    bank, targets = clusters(40, d=1)
    assert feature_quality(bank[:20], targets[:20], bank[20:], targets[20:])["effective_rank"] == 1


def test_what_cannot_be_known_is_no_number():
    bank, targets = clusters(10)
    broken = bank.clone()
    broken[3, 2] = torch.inf
    for one, other, of_other in ((broken, bank, targets), (bank, bank[:0], targets[:0])):
        assert all(np.isnan(value) for value in feature_quality(one, targets, other, of_other).values())
    assert all(np.isnan(v) for v in feature_quality(bank[:0], targets[:0], bank, targets).values())
    one_class = torch.ones_like(targets)  # whose top-1 is 100 % whatever the features are
    assert all(np.isnan(value) for value in feature_quality(bank, one_class, bank, one_class).values())
