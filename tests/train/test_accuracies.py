"""Top-1 and top-5 beside torchmetrics' own."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from distill_dynamics.data.batches import IGNORED
from distill_dynamics.train.metrics import accuracies


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracies_are_those_of_torchmetrics_to_the_last_bit(classes, dtype):
    generator = torch.Generator().manual_seed(0)
    ours = accuracies(classes)
    theirs = {
        f"acc{k}": MulticlassAccuracy(
            classes, top_k=min(k, classes), average="micro", ignore_index=IGNORED, validate_args=False
        )
        for k in (1, 5)
    }
    for size in (7, 1, 16):
        logits = torch.randn(size, classes, generator=generator).to(dtype)  # in bfloat16 some are equal
        targets = torch.randint(classes, (size,), generator=generator)
        targets[::3] = logits[::3].argmax(1)
        targets[1::5] = IGNORED
        ours.update(logits, targets)
        for metric in theirs.values():
            metric.update(logits, targets)
    assert ours.compute() == {name: 100.0 * metric.compute() for name, metric in theirs.items()}
    assert 0 < ours.compute()["acc1"] < 100


def test_both_are_counted_where_the_first_batch_has_equal_counts():
    metrics = accuracies(10)
    logits = torch.arange(10.0)[None]
    metrics.update(logits, torch.tensor([9]))
    metrics.update(logits, torch.tensor([7]))
    assert metrics.compute() == {"acc1": 50.0, "acc5": 100.0}


def test_of_one_class_all_are_hits():
    metrics = accuracies(1)
    metrics.update(torch.randn(3, 1), torch.tensor([0, IGNORED, 0]))
    assert metrics.compute() == {"acc1": 100.0, "acc5": 100.0}


def test_padding_alone_is_zero():
    metrics = accuracies(10)
    metrics.update(torch.randn(3, 10), torch.full((3,), IGNORED))
    assert metrics.compute() == {"acc1": 0.0, "acc5": 0.0}
