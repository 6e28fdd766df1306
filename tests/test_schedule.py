import random

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from distill_dynamics.errors import UserError
from distill_dynamics.schedule import WarmupCosine


def sgd(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates])


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def step(scheduler):
    scheduler.optimizer.step()
    scheduler.step()


def rates_by_epoch(optimizer, scheduler, epochs):
    rates = []
    for _ in range(epochs):
        rates.append(rates_of(optimizer))
        step(scheduler)
    return rates


def rates_by_epoch_in_deit(epochs_run, base_rates, **timm_kwargs):
    optimizer = sgd(*base_rates)
    scheduler = CosineLRScheduler(optimizer, **timm_kwargs)
    rates = []
    for epoch in range(epochs_run):
        rates.append(rates_of(optimizer))
        scheduler.step(epoch)
    return rates


@pytest.mark.parametrize("seed", range(20))
def test_any_schedule_is_timms_past_its_end_too(seed):
    draw = random.Random(seed)
    epochs, warmup_epochs = draw.randint(2, 40), draw.choice([0, 0, 1, 3, 5, 10])
    warmup_lr, min_lr, base_lr = draw.choice([0.0, 1e-6]), draw.choice([0.0, 1e-5]), draw.uniform(1e-4, 1e-2)
    optimizer = sgd(base_lr, base_lr / 3)
    scheduler = WarmupCosine(optimizer, epochs, warmup_epochs, warmup_lr, min_lr)
    ours = rates_by_epoch(optimizer, scheduler, epochs + 12)
    timms = rates_by_epoch_in_deit(
        epochs + 12,
        (base_lr, base_lr / 3),
        t_initial=epochs,
        lr_min=min_lr,
        warmup_t=warmup_epochs,
        warmup_lr_init=warmup_lr,
    )
    torch.testing.assert_close(ours, timms, rtol=0, atol=1e-12)
    assert ours[-1] == [min_lr, min_lr]


@pytest.mark.parametrize(("warmup_epochs", "first_rate"), [(5, 1e-6), (0, 2e-3)])
def test_epochs_can_be_told_later(warmup_epochs, first_rate):
    told, late = sgd(2e-3), sgd(2e-3)
    late_scheduler = WarmupCosine(late, warmup_epochs=warmup_epochs)
    assert rates_of(late) == [first_rate]
    late_scheduler.epochs = 9
    told_scheduler = WarmupCosine(told, epochs=9, warmup_epochs=warmup_epochs)
    assert rates_by_epoch(late, late_scheduler, 9) == rates_by_epoch(told, told_scheduler, 9)


def test_epochs_never_told():
    scheduler = WarmupCosine(sgd(2e-3), warmup_epochs=2)
    step(scheduler)
    step(scheduler)
    with pytest.raises(ValueError, match=r"epoch 3 .* not set"):
        step(scheduler)


@pytest.mark.parametrize("interrupted_after", [1, 3, 8])
def test_a_resumed_run_has_the_same_rates(interrupted_after):
    uninterrupted = sgd(2e-3, 1e-3)
    expected = rates_by_epoch(uninterrupted, WarmupCosine(uninterrupted, epochs=10, warmup_epochs=3), 10)

    optimizer = sgd(2e-3, 1e-3)
    scheduler = WarmupCosine(optimizer, epochs=10, warmup_epochs=3)
    rates_by_epoch(optimizer, scheduler, interrupted_after)
    saved = optimizer.state_dict(), scheduler.state_dict()

    resumed = sgd(2e-3, 1e-3)
    resumed_scheduler = WarmupCosine(resumed, warmup_epochs=3)
    resumed.load_state_dict(saved[0])
    resumed_scheduler.load_state_dict(saved[1])
    assert rates_by_epoch(resumed, resumed_scheduler, 10 - interrupted_after) == expected[interrupted_after:]


def test_a_rate_that_is_a_tensor_is_set_in_place():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(2e-3))
    rate = optimizer.param_groups[0]["lr"]
    WarmupCosine(optimizer, epochs=10)
    assert optimizer.param_groups[0]["lr"] is rate
    torch.testing.assert_close(rate, torch.tensor(1e-6))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"warmup_epochs": -1}, {"warmup_lr": -1e-6}, {"min_lr": float("nan")}]
)
def test_numbers_that_make_no_schedule(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        WarmupCosine(sgd(2e-3), **wrong)
