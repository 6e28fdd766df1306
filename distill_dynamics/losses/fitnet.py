"""FitNet: a linear map of the student's features is the teacher's (Romero et al., ICLR 2015)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids
from distill_dynamics.losses.token_statistics import token_statistics
from distill_dynamics.losses.unexplained_variance import unexplained_variance


def fitnet(student_map: Tensor, teacher_map: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Mean squared error of the projected student map and the teacher map; nothing is standardised.

    Maps [B, C_s, H_s, W_s] and [B, C_t, H_t, W_t], pooled to (min H, min W) where their grids differ; weight
    [C_t, C_s] and bias [C_t] act on each token. A mean over B, C, H and W, where the paper has half a sum.
    """
    student_map, teacher_map = match_grids(student_map, teacher_map.detach())
    projected = F.conv2d(student_map.to(weight.dtype), weight[:, :, None, None], bias)
    return F.mse_loss(at_least_float32(projected), at_least_float32(teacher_map))


def capacity_floor(covariance: Tensor, channels: int) -> Tensor:
    """Least `fitnet` that any linear map from so many channels can reach: scalar.

    Covariance [C, C] of the teacher's tokens; its `unexplained_variance`, over C.
    """
    return unexplained_variance(covariance, channels) / len(covariance)


class FitNet(SeesPooled, nn.Module):
    """`fitnet` with the map it learns, nn.Linear's default at the start.

    Args:
        student_channels, teacher_channels: of the maps.
        hinge: max(0, loss - floor), with the floor of the teacher's tokens, which is fitted before
            training: it stops pulling where no linear map could do better. Of each rank's batch; only
            for grids as fine as the teacher's.

    `ValueError` for a map with other channels than those declared.
    """

    fitted_floor: Tensor

    def __init__(self, student_channels: int, teacher_channels: int, hinge: bool = False) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)
        self.projector = nn.Linear(student_channels, teacher_channels)
        self.hinge = hinge
        self.register_buffer("fitted_floor", torch.zeros(()))

    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure the floor, if there is to be a hinge."""
        if self.hinge:
            covariance = token_statistics(batches)[1]
            self.fitted_floor.copy_(capacity_floor(covariance, self.channels[0]))

    def floor(self, covariance: Tensor, channels: int) -> Tensor | float:
        """`capacity_floor`; 0 with a hinge, which has taken it off."""
        return 0.0 if self.hinge else capacity_floor(covariance, channels)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        check_channels(student_map, teacher_map, self.channels)
        if self.hinge and student_map.shape[2] < teacher_map.shape[2]:
            raise ValueError("a hinge needs a grid as fine as the teacher's, whose tokens its floor is of")
        loss = fitnet(student_map, teacher_map, self.projector.weight, self.projector.bias)
        return (loss - self.fitted_floor).clamp(min=0) if self.hinge else loss

    # In a state dict the buffer is "floor", as in checkpoints that are older than the method of that name.

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}floor"] = destination.pop(f"{prefix}fitted_floor")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        if f"{prefix}floor" in state_dict:
            state_dict[f"{prefix}fitted_floor"] = state_dict.pop(f"{prefix}floor")
        super()._load_from_state_dict(state_dict, prefix, *args)
