import inspect

import pytest

from distill_dynamics import losses
from distill_dynamics.report.loss_defaults import loss_defaults

CLASSES = [name for name in losses.__all__ if inspect.isclass(getattr(losses, name))]


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_from_the_source_are_those_of_the_class(name):
    parameters = inspect.signature(getattr(losses, name)).parameters.values()
    expected = {one.name: one.default for one in parameters if one.default is not one.empty}
    assert loss_defaults(f"distill_dynamics.losses.{name}") == expected


def test_of_another_class_none_are_known():
    assert loss_defaults("torch.nn.MSELoss") == {}
    assert loss_defaults("distill_dynamics.losses.soft_kd") == {}
