"""One training step by hand, by timm's distillation task and by torchdistill.

Each as its documentation has it used.
"""

import torch
import torch.nn.functional as F
from sizes import Size
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.utils.data import Dataset
from turns import Pause

from distill_dynamics.losses import SoftKD, SpectralKD

ALPHA, SMOOTHING, BETA, LR, DECAY = 0.9, 0.1, 0.2, 1e-4, 0.05


def by_hand(pause: Pause, size: Size, taught: bool = True, spectral: bool = True) -> None:
    """A loop as one would write it: SoftKD with a teacher, SpectralKD on the first and the last block."""
    student, teacher = size.models()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    soft_kd, spectral_kd = SoftKD(), SpectralKD()
    for images, targets in size.stream():
        pause()
        with size.autocast():
            logits, maps = _logits_and_ends(student, images, spectral)
            loss = F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
            if taught:
                with torch.no_grad():
                    teacher_logits, teacher_maps = _logits_and_ends(teacher, images, spectral)
                loss = (1 - ALPHA) * loss + ALPHA * soft_kd(logits, teacher_logits)
                pairs = [spectral_kd(one, other) for one, other in zip(maps, teacher_maps, strict=True)]
                loss = loss + BETA * sum(pairs) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _logits_and_ends(model: nn.Module, images: Tensor, maps: bool) -> tuple[Tensor, list[Tensor]]:
    """A model's logits and, if they are asked for, the maps of its first and its last block."""
    if not maps:
        return model(images), []
    ends = [0, len(model.blocks) - 1]
    final, found = model.forward_intermediates(images, indices=ends, norm=False)
    return model.forward_head(final), found


def timm_task(pause: Pause, size: Size, compiled: bool = False) -> None:
    """SoftKD by `timm.task`, with timm's loop and optimiser."""
    student, teacher = size.models()
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(label_smoothing=SMOOTHING),
        task_loss_weight=1 - ALPHA,
        distill_loss_weight=ALPHA,
        device=torch.device(size.device),
        verbose=False,
    )
    if compiled:
        task.compile()
    task.train()
    optimizer = create_optimizer_v2(task.trainable_module, "adamw", lr=LR, weight_decay=DECAY)
    for images, targets in size.stream():
        pause()
        with size.autocast():
            loss = task(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class _Repeated(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches, over and over."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]):
        self.batches = batches

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index % len(self.batches)]


def torchdistill(pause: Pause, size: Size) -> None:
    """SoftKD by torchdistill's DistillationBox, configured as its examples are, with their loop."""
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = size.models()
    kd = {
        **{f"{role}_module_path": "." for role in ("student", "teacher")},
        **{f"{role}_module_io": "output" for role in ("student", "teacher")},
        "temperature": 1,
        "alpha": 1 - ALPHA,
        "label_smoothing": SMOOTHING,
    }
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "made",
            "requires_supp": False,
            "sampler": {"class_or_func": torch.utils.data.SequentialSampler},
            "kwargs": {"batch_size": None},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": DECAY}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }
    device, data = torch.device(size.device), {"made": _Repeated(size.batches())}
    box = get_distillation_box(teacher, student, data, config, device, None, False, 1)
    box.pre_epoch_process(epoch=0)
    for images, targets in box.train_data_loader:
        pause()
        images, targets = (part.to(size.device, non_blocking=True) for part in (images, targets))
        with size.autocast():
            loss = box.forward_process(images, targets, None)
        box.post_forward_process(loss)
