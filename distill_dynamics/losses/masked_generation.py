"""MaskedGeneration: from half of the student's tokens, generate the teacher's others (ViTKD, MGD 2022)."""

import torch
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids


def masked_error(generated: Tensor, teacher_map: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over the masked tokens: maps [B, C, H, W], masked [B, 1, H, W] of 0 and 1."""
    squares = (at_least_float32(generated) - at_least_float32(teacher_map)).square() * masked
    return squares.sum() / (masked.sum() * generated.shape[1])


class MaskedGeneration(SeesPooled, nn.Module):
    """The teacher's map at masked tokens, generated from the student's other tokens.

    A linear map C_s → C_t, a learnt token in the place of the masked ones, and a generator of two 3 × 3
    convolutions with a ReLU between; mean squared error at the masked tokens alone. Of each image the same
    number of tokens is masked. ViTKD (Yang et al., 2022) does so with the last block, mask 0.5, and FitNet on
    the first two. Its sums over tokens and channels are means here: its β / λ = 6e-6 is a weight of
    6e-6 · masked tokens · C_t, 0.23 for 196 tokens and 384 channels, and the 3e-5 of its FitNet one of
    3e-5 · 2 blocks · tokens · C_t, 4.5 (`vitkd.py` of cls_KD).

    `ValueError` for a share outside (0, 1), and for a map with other channels than those declared.
    """

    def __init__(self, student_channels: int, teacher_channels: int, mask: float = 0.5) -> None:
        super().__init__()
        if not 0 < mask < 1:
            raise ValueError(f"mask is a share, above 0 and below 1, not {mask}")
        self.channels, self.mask = (student_channels, teacher_channels), mask
        self.projector = nn.Conv2d(student_channels, teacher_channels, 1)
        self.token = nn.Parameter(torch.zeros(1, teacher_channels, 1, 1))
        self.generator = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]; the mask is drawn anew."""
        check_channels(student_map, teacher_map, self.channels)
        student_map, teacher_map = match_grids(student_map, teacher_map.detach())
        images, _, height, width = student_map.shape
        count = min(max(round(self.mask * height * width), 1), max(height * width - 1, 1))
        order = torch.rand(images, height * width, device=student_map.device).argsort(1)
        masked = (order < count).view(images, 1, height, width)
        shown = torch.where(masked, self.token.to(student_map.dtype), self.projector(student_map))
        return masked_error(self.generator(shown), teacher_map, masked)
