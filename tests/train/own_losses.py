"""Losses of a user's own: a file outside the package that needs torch alone."""

import torch
import torch.nn.functional as F
from torch import nn


class Maps(nn.Module):
    """Two maps and a projector."""

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.project = nn.Linear(student_channels, teacher_channels)

    def forward(self, student_map, teacher_map):
        tokens = student_map.flatten(2).transpose(1, 2)
        return F.mse_loss(self.project(tokens), teacher_map.flatten(2).transpose(1, 2))


class Prefix(nn.Module):
    """Class tokens."""

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.project = nn.Linear(student_channels, teacher_channels)

    def forward(self, student_prefix, teacher_prefix):
        return F.mse_loss(self.project(student_prefix[:, 0]), teacher_prefix[:, 0])


class Attention(nn.Module):
    """The mean over heads."""

    def forward(self, student_attention, teacher_attention):
        return F.kl_div(
            student_attention.mean(1).clamp_min(1e-8).log(), teacher_attention.mean(1), reduction="batchmean"
        )


class Targets(nn.Module):
    """Logits with targets: the teacher counts where it is right."""

    def forward(self, student_logits, teacher_logits, targets):
        right = (teacher_logits.argmax(1) == targets).float()
        return (right * F.cross_entropy(student_logits, teacher_logits.argmax(1), reduction="none")).mean()


class Token(nn.Module):
    """DeiT's hard distillation, on the distillation token."""

    def forward(self, student_dist_logits, teacher_logits):
        return F.cross_entropy(student_dist_logits, teacher_logits.argmax(1))


class Bank(nn.Module):
    """Pooled features with a memory bank, as MoCo has it; and a draw."""

    def __init__(self, student_channels, teacher_channels, size=24):
        super().__init__()
        self.project = nn.Linear(student_channels, teacher_channels)
        self.register_buffer("queue", F.normalize(torch.randn(size, teacher_channels), dim=1))

    def forward(self, student_pooled, teacher_pooled):
        student = F.normalize(F.dropout(self.project(student_pooled), 0.2, self.training), dim=1)
        teacher = F.normalize(teacher_pooled, dim=1)
        logits = torch.cat([(student * teacher).sum(1, keepdim=True), student @ self.queue.T.clone()], dim=1)
        self.queue.copy_(torch.cat([teacher.detach(), self.queue])[: len(self.queue)])
        return F.cross_entropy(logits / 0.1, torch.zeros(len(student), dtype=torch.long))


class Instance(nn.Module):
    """Each image's place in the data set, and the progress."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(60_000))

    def forward(self, student_logits, index, progress):
        self.seen[index] += 1
        return (1 - progress) * student_logits.square().mean() + 0 * self.seen.sum()


class Centred(nn.Module):
    """What the teacher's pooled features are on average is fitted before training."""

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.project = nn.Linear(student_channels, teacher_channels)
        self.register_buffer("mean", torch.zeros(teacher_channels))
        self.register_buffer("images", torch.zeros(()))

    def fit(self, batches):
        values = torch.cat([batch["teacher_pooled"] for batch in batches])
        self.mean.copy_(values.mean(0))
        self.images.fill_(len(values))

    def forward(self, student_pooled, teacher_pooled):
        return F.mse_loss(self.project(student_pooled), teacher_pooled - self.mean)


class Basis(nn.Module):
    """Directions of the teacher's pooled features are fitted, and stored is where an image lies on them."""

    def __init__(self, student_channels, teacher_channels, k=3):
        super().__init__()
        self.project = nn.Linear(student_channels, k)
        self.basis = nn.Parameter(torch.eye(teacher_channels)[:, :k].clone(), requires_grad=False)

    def fit(self, batches):
        values = torch.cat([batch["teacher_pooled"].float() for batch in batches])
        covariance = values.T @ values
        assert covariance.dtype == torch.float32  # no autocast here
        self.basis.data = torch.linalg.eigh(covariance).eigenvectors[:, -self.basis.shape[1] :]

    def cacheable(self, teacher_pooled):
        return (
            teacher_pooled if teacher_pooled.shape[1] == self.basis.shape[1] else teacher_pooled @ self.basis
        )

    def forward(self, student_pooled, teacher_pooled):
        return F.mse_loss(self.project(student_pooled), self.cacheable(teacher_pooled))


class Half(nn.Module):
    """Sees half of the teacher's pooled features, and is content with that half."""

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.project = nn.Linear(student_channels, teacher_channels // 2)

    def cacheable(self, teacher_pooled):
        return teacher_pooled[:, : self.project.out_features]

    def forward(self, student_pooled, teacher_pooled):
        return F.mse_loss(self.project(student_pooled), self.cacheable(teacher_pooled))


class Twice(Half):
    """Does to what was stored what was done to it before."""

    def cacheable(self, teacher_pooled):
        return teacher_pooled / 2

    def forward(self, student_pooled, teacher_pooled):
        return student_pooled.square().mean() + self.cacheable(teacher_pooled).square().mean()


class Shifted(nn.Module):
    """Sees the number that no softmax sees."""

    def forward(self, student_logits, teacher_logits):
        return F.mse_loss(student_logits, teacher_logits)


class Unknown(nn.Module):
    def forward(self, student_map, teacher_maps):
        return student_map.mean()


class Silent(nn.Module):
    def forward(self):
        return torch.zeros(())
