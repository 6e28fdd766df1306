"""What a cache gives to a run's losses: what was fitted to the teacher, and nothing that is the run's own."""

import pytest
import torch
from torch import nn

from distill_dynamics import UserError
from distill_dynamics.losses import FitNet, PCATarget, TokenKD
from distill_dynamics.models.save import write_weights
from distill_dynamics.teacher_cache.fitted import NAME, fitted_state, load_fitted, write_fitted
from distill_dynamics.train.terms import loss_settings

BATCHES = [{"teacher_map": torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))}]


class Guess(nn.Module):
    """Fits a parameter, which is trained on from there."""

    def __init__(self):
        super().__init__()
        self.guess, self.own = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(2))
        self.calls = 0

    def fit(self, batches):
        self.calls, self.done = self.calls + 1, True  # no settings, though they are attributes
        self.guess.data.copy_(next(iter(batches))["teacher_map"].mean((0, 2, 3)))


class Losses(list):
    """Those of a term."""

    def __init__(self, *losses):
        super().__init__(losses)
        self.loss_settings = [loss_settings(loss) for loss in losses]


def make(seed):
    torch.manual_seed(seed)
    return {
        "hinge": Losses(FitNet(5, 8, hinge=True)),
        "pca": Losses(PCATarget(5, 8)),
        "token": Losses(TokenKD(5, 8)),
        "guess": Losses(Guess()),
    }


def test_a_run_of_another_seed_keeps_its_own_projector(tmp_path):
    fitted = make(0)
    for (loss,) in fitted.values():
        loss.fit(BATCHES)
    fitted["guess"][0].fitted_parameters = {"guess"}
    write_fitted(tmp_path, fitted, {}, {})
    before, run = make(1), make(1)
    load_fitted(tmp_path, run, {})
    for name, (loss,) in run.items():
        (theirs,), (own,) = fitted[name], before[name]
        trained = {key for key, _ in loss.named_parameters()} - {"guess"}
        for key, value in loss.state_dict().items():
            expected = own if key in trained else theirs
            assert torch.equal(value, expected.state_dict()[key]), (name, key)


@pytest.mark.parametrize(
    ("run", "images", "words"),
    [
        (PCATarget(5, 6), {"crop_pct": 1.0}, r"channels was \[5, 8\] and is \[5, 6\]"),
        (PCATarget(5, 8, whiten=True), {"crop_pct": 1.0}, "whiten was False and is True"),
        (PCATarget(5, 8, components="random"), {"crop_pct": 1.0}, "components was principal and is random"),
        (FitNet(5, 8, hinge=True), {"crop_pct": 1.0}, "loss was PCATarget and is FitNet"),
        (PCATarget(5, 8), {"crop_pct": 0.9}, "fitted to: crop_pct was 1.0 and is 0.9"),
    ],
)
def test_a_cache_that_was_fitted_otherwise_is_refused(tmp_path, run, images, words):
    write_fitted(tmp_path, {"pca": Losses(PCATarget(5, 8))}, {"crop_pct": 1.0}, {})
    with pytest.raises(UserError, match=words):
        load_fitted(tmp_path, {"pca": Losses(run)}, images)


def test_a_cache_that_is_older_than_an_argument_was_built_with_its_default(tmp_path):
    """TokenKD of before `standardise`."""
    terms = {"token": Losses(TokenKD(5, 8))}
    state = {f"token.0.{name}": value for name, value in fitted_state(terms["token"][0]).items()}
    assert [*state] == ["token.0.mean", "token.0.std"]
    state = {name: torch.rand(8) for name in state}
    facts = {"fitted to": {}, "model.terms.token.0": {"loss": "TokenKD", "channels": [5, 8]}}
    write_weights(tmp_path / NAME, state, facts, None)
    load_fitted(tmp_path, terms, {})
    assert torch.equal(terms["token"][0].mean, state["token.0.mean"])
    assert torch.equal(terms["token"][0].std, state["token.0.std"])
    with pytest.raises(UserError, match="standardise was channel and is phi-s"):
        load_fitted(tmp_path, {"token": Losses(TokenKD(5, 8, "phi-s"))}, {})


def test_one_standardisation_does_not_stand_for_another(tmp_path):
    write_fitted(tmp_path, {"token": Losses(TokenKD(5, 8, "whiten"))}, {}, {})
    with pytest.raises(UserError, match="standardise was whiten and is phi-s"):
        load_fitted(tmp_path, {"token": Losses(TokenKD(5, 8, "phi-s"))}, {})


def test_a_cache_of_before_is_told_from_one_of_other_settings(tmp_path):
    terms = {"pca": Losses(PCATarget(5, 8))}
    state = {f"pca.0.{name}": value for name, value in fitted_state(terms["pca"][0]).items()}
    write_weights(tmp_path / NAME, state, {}, None)
    with pytest.raises(UserError, match=r"is of an earlier version.*build the cache anew"):
        load_fitted(tmp_path, terms, {"crop_pct": 1.0})
