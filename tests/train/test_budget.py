"""A budget: the weight of a term, averaged over its pairs and the steps of the training, is that number."""

import math
import types

import numpy as np
import pytest
import torch
from own_gates import Numbers
from test_fit import fit, rows
from test_gates import trained
from test_terms import deit

from distill_dynamics import Distiller, Term, UserError
from distill_dynamics.losses import SpectralKD
from distill_dynamics.schedule import Cosine, From, Linear, Steps, Until

pytestmark = pytest.mark.usefixtures("no_report")


HALF = {"start": 0.2, "end": 0.7}


def weights(term, steps, gates=None, **settings):
    """β at the middle of each of so many steps, by a trainer of these settings."""
    defaults = {"max_epochs": 3, "max_steps": -1, "num_training_batches": 8, "accumulate_grad_batches": 2}
    module = Distiller(deit(), deit(), {"x": term})
    trainer = types.SimpleNamespace(**defaults | settings)
    object.__setattr__(module, "_trainer", trainer)
    if gates:
        module.terms["x"].gates.copy_(torch.tensor(gates))
    module.terms["x"].begin()
    return [module.weights_at((step + 0.5) / steps)["x"] for step in range(steps)]


@pytest.mark.parametrize(
    "weight",
    [7.0, Linear(0.0, 3.0), Cosine(2.0, 1.0), Steps([1.0, 0.0], [0.4]), Until(0.2, 0.6), From(0.2, 0.6)],
)
@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 12),
        ({"num_training_batches": 7}, 12),  # the last step of an epoch is of one batch
        ({"max_steps": 5}, 5),
        ({"max_epochs": -1, "max_steps": 5, "num_training_batches": math.inf}, 5),
    ],
)
def test_the_mean_over_the_steps_is_the_budget(weight, settings, steps):
    spent = weights(Term(SpectralKD, weight, last=1, budget=0.2), steps, **settings)
    assert math.fsum(spent) / steps == pytest.approx(0.2, rel=1e-9)
    shape = [weight(p) if callable(weight) else weight for p in (np.arange(steps) + 0.5) / steps]
    np.testing.assert_allclose(spent, 0.2 * np.array(shape) / np.mean(shape), rtol=1e-9)


def test_the_mean_over_the_pairs_is_the_budget_too():
    gate = Numbers([])
    term = Term(SpectralKD, Until(0.2, 0.6), pairs="all", gate=gate, budget=0.2)
    spent = weights(term, 12, gates=[0.5, 0.25])
    by_hand = [weight * gate for weight in spent for gate in (0.5, 0.25)]
    assert np.mean(by_hand) == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize(
    ("term", "settings", "words"),
    [
        (Term(SpectralKD, Until(0.0, 0.01), last=1, budget=0.2), {}, "x.budget: .* 0 in each of the 12"),
        (Term(SpectralKD, last=1, budget=0.2), {"max_epochs": -1}, "needs a number of steps that is known"),
        (Term(SpectralKD, last=1, budget=0.2), {"num_training_batches": math.inf}, "needs a number of steps"),
        (Term(SpectralKD, last=1, budget=0.0), {}, "budget must be more than 0"),
        (Term(SpectralKD, last=1, budget=float("nan")), {}, "budget must be more than 0"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(term, settings, words):
    with pytest.raises(UserError, match=words) as error:
        weights(term, 12, **settings)
    assert "\n" not in str(error.value)


def test_a_constant_weight_spends_itself():
    (plain, _), (scaled, _) = (
        trained({"x": Term(SpectralKD, weight, last=1, budget=budget)})
        for weight, budget in ((0.25, None), (1.0, 0.25))
    )
    assert all(map(torch.equal, plain.values, scaled.values))


def test_what_metrics_hold_of_mirror_images_is_one_budget(experiment, tmp_path):
    spent = {}
    for name in ("Until", "From"):
        term = {
            "loss": {"class_path": "distill_dynamics.losses.SpectralKD"},
            "weight": {"class_path": f"distill_dynamics.schedule.{name}", "init_args": HALF},
            "pairs": "depth",
            "gate": {"class_path": "own_gates.Numbers", "init_args": {"numbers": [0.9, 0.1]}},
            "budget": 0.2,
        }
        accumulated = {"trainer__limit_train_batches": 4, "trainer__accumulate_grad_batches": 2}
        fit(experiment(model__terms={"x": term}, probe__every_n_epochs=0, **accumulated), "--name", name)
        spent[name] = [float(row["train/weight_x"]) for row in rows(tmp_path / "runs" / name)[1:]]
    for values in spent.values():
        assert len(values) == 2
        assert np.mean(values) == pytest.approx(0.2, rel=1e-6)
    assert spent["Until"][0] > 0.2 > spent["From"][0]
