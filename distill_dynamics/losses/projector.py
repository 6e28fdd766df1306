"""ProjectorKD: a linear map of the student's features learns to be the teacher's (Eq. 8; Romero et al. 2015).

In the published runs the projector was made after the optimiser, and so never trained, nor synchronised
over ranks, nor saved; the standardisation was batch norm. What is different here, and why, is said below.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids
from distill_dynamics.losses.ranks import GatherRanks, several_ranks
from distill_dynamics.losses.unexplained_variance import unexplained_variance

EPS = 1e-5  # as batch norm's


def projector_kd(
    student_map: Tensor, teacher_map: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Mean squared error of the projected student map and the teacher map, both standardised (Eq. 8).

    Maps [B, C_s, H_s, W_s] and [B, C_t, H_t, W_t] of the same images, pooled to (min H, min W) where
    their grids differ; weight [C_t, C_s] and bias [C_t] act on each token. The slow form:

        projected = F.linear(student_map.movedim(1, -1), weight, bias).movedim(-1, 1)
        F.mse_loss(standardised(projected), standardised(teacher_map))

    with `standardise` below. The projection runs in autocast's precision, the rest in float32 at least.
    The mean taken away by standardising takes the bias with it: it has no effect and no gradient beyond
    round-off, and is here because Eq. 8's projector has one.

    With several ranks each gives the mean over its own images, as cross-entropy does, standardised by all
    ranks' images: every rank must call it, and so must every rank's backward pass.

    No gradient reaches the teacher. `ValueError` unless both are maps of equally many images, and for a
    single value a channel, which cannot be standardised.
    """
    student_map, teacher_map = match_grids(student_map, teacher_map.detach())
    # A 1 × 1 convolution is the linear map of every token, without moving channels last.
    projected = F.conv2d(student_map.to(weight.dtype), weight[:, :, None, None], bias)
    projected, teacher_map = standardise(at_least_float32(projected), at_least_float32(teacher_map))
    return F.mse_loss(projected, teacher_map)


def correlation_floor(covariance: Tensor, channels: int) -> Tensor:
    """Below this `projector_kd` cannot be brought by any linear map from so many channels: scalar.

    Covariance [C, C] of the teacher's tokens; the `unexplained_variance` of their standardised channels, over
    C. It is reached where the projected map's variance is as small as standardising's epsilon. Otherwise
    the channels of the best map, whose variance is 1 - r with r unexplained, are brought back to 1, and its
    loss is the mean of 2 - 2√(1 - r), which is r + r²/4 and more.
    """
    scale = (covariance.diagonal() + EPS).rsqrt()
    return unexplained_variance(scale[:, None] * covariance * scale, channels) / len(covariance)


def standardise(*maps: Tensor) -> list[Tensor]:
    """Bring each map [B, C, H, W] to mean 0 and variance 1 per channel, over B, H, W of the global batch.

    The slow form, with the images of all ranks in one x:

        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
        (x - mean) / (variance + 1e-5).sqrt()

    This is batch norm as it trains, without scale, shift or running averages, in eval too. A trainable
    scale would let the two maps of `projector_kd` shrink together until the loss is 0 and says nothing.

    Maps of several ranks need one exchange, whatever their number, and must be on one grid. Ranks may
    hold different numbers of images. Gradients flow through the statistics to every rank's images, and
    are of the sum of all ranks' losses, so that DDP's mean over ranks is the gradient of the mean loss.
    """
    if not several_ranks():
        return [F.batch_norm(x, None, None, training=True, eps=EPS) for x in maps]

    channels = [x.shape[1] for x in maps]
    local = [torch.var_mean(x, dim=(0, 2, 3), correction=0) for x in maps]
    variance, mean = torch.cat([v for v, _ in local]), torch.cat([m for _, m in local])
    count = mean.new_full((1,), maps[0].numel() / channels[0])

    statistics = GatherRanks.apply(torch.cat([variance, mean, count]))
    variances, means, counts = statistics.split([sum(channels), sum(channels), 1], dim=1)
    share = counts / counts.sum()
    # Centred before it is squared: the difference of two large squares would cancel in float32.
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)

    return [
        (x - m[:, None, None]) * (v + EPS).rsqrt()[:, None, None]
        for x, m, v in zip(maps, mean.split(channels), variance.split(channels), strict=True)
    ]


class ProjectorKD(SeesPooled, nn.Module):
    """`projector_kd` with the projector it learns, nn.Linear's default at the start.

    On one rank and before the first step its loss is the published one (batch norm of both maps, then
    mean squared error). `trainable=False` keeps the projector at its random start: that is what the
    published runs did.

    `ValueError` for a map with other channels than those declared.
    """

    def __init__(self, student_channels: int, teacher_channels: int, trainable: bool = True) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)
        self.projector = nn.Linear(student_channels, teacher_channels).requires_grad_(trainable)

    def floor(self, covariance: Tensor, channels: int) -> Tensor | None:
        """`correlation_floor`; None for a projector that is not trained."""
        trained = self.projector.weight.requires_grad
        return correlation_floor(covariance, channels) if trained else None

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C_s, H_s, W_s] and [B, C_t, H_t, W_t]."""
        check_channels(student_map, teacher_map, self.channels)
        return projector_kd(student_map, teacher_map, self.projector.weight, self.projector.bias)
