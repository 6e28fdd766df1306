"""The tug-of-war of feature distillation: does a term pull a block where the rest of the loss pulls it?

Letters: N images, L blocks of the student, P parameters of one block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from distill_dynamics.callbacks.probe import DynamicsProbe
from distill_dynamics.callbacks.probe_clock import AtProbes
from distill_dynamics.errors import UserError
from distill_dynamics.losses.ranks import one_rank
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.input_size import of_side, views_side
from distill_dynamics.models.isolated import isolated
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.progress import progress_after


def conflict(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float],
    other: Tensor,
    blocks: Sequence[Sequence[Tensor]],
) -> dict[str, list[float]]:
    """Cosine between the gradient of each term and that of the rest of the loss, block by block.

    For term i and the parameters θ of one block, as one vector [P]:

        cos(∇θ termᵢ, ∇θ rest),   rest = other + Σ weightⱼ · termⱼ over j ≠ i

    1: the term pulls the block where all else pulls it; 0: across; below 0: against it.

    Args:
        terms: unweighted scalars with their graph, by name.
        weights: of each term in the loss. A term's own does not matter to its cosine, and may be 0.
        other: the weighted sum of what is no term.
        blocks: L lists of leaf tensors that require a gradient.

    Returns:
        A list of L cosines a term; NaN where there is none: a block that the term or the rest does not
        reach, without parameters, or with a gradient that is 0 or not finite.

    Nothing is written to `.grad`, and the graph is kept. The cost is a backward pass for each term, from its
    deepest block, and one for the rest.
    """
    of_other = _gradients(other, blocks)
    of_term = {name: _gradients(term, blocks) for name, term in terms.items()}
    cosines: dict[str, list[float]] = {}
    for name, gradients in of_term.items():
        cosines[name] = []
        for i, gradient in enumerate(gradients):
            rest = [of_other[i]]
            for rival, of_rival in of_term.items():
                if rival != name and (pull := of_rival[i]) is not None:
                    rest.append(weights[rival] * pull)
            cosines[name].append(_cosine(gradient, [pull for pull in rest if pull is not None]))
    return cosines


def _gradients(loss: Tensor, blocks: Sequence[Sequence[Tensor]]) -> list[Tensor | None]:
    """Gradient [P] with respect to each block; None where the loss does not depend on the block."""
    parameters = [parameter for block in blocks for parameter in block]
    if not parameters or not loss.requires_grad:
        return [None] * len(blocks)
    # Not .backward(): that writes .grad and sets off DDP's reduction.
    found = iter(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
    vectors: list[Tensor | None] = []
    for block in blocks:
        gradients = [next(found) for _ in block]
        reached = any(gradient is not None for gradient in gradients)
        whole = [
            (torch.zeros_like(parameter) if gradient is None else gradient).flatten()
            for parameter, gradient in zip(block, gradients, strict=True)
        ]
        vectors.append(torch.cat(whole) if reached else None)
    return vectors


def _cosine(gradient: Tensor | None, rest: Sequence[Tensor]) -> float:
    if gradient is None or not rest:
        return math.nan
    against = torch.stack(list(rest)).sum(0)
    # Not cosine_similarity, which takes lengths below 1e-8 for 1e-8.
    return float((gradient / gradient.norm()) @ (against / against.norm()))


def block_parameters(student: Backbone) -> list[list[nn.Parameter]]:
    """The trained parameters of each of the student's L blocks: those in the module the block is named by.

    That is all of a ViT's block or a Swin stage, and a part where timm names the last module of a stage
    only (EfficientNet). Patch embedding, head and final norm belong to no block. A block that has no
    parameters of its own (ResNet's first, an activation), or whose name is no module, has none here.
    """
    trained = [(name, p) for name, p in student.model.named_parameters() if p.requires_grad]
    return [[p for name, p in trained if name.startswith(f"{layer}.")] for layer in student.layers]


class GradientConflict(AtProbes):
    """Logs at each probe how far each feature term and the rest of the loss agree about each block.

    `dynamics/conflict/<term>/block_01` is the cosine of `conflict`, between -1 and 1, on the axis
    `dynamics/epoch`. Below zero the term holds the block back from what the rest of the loss asks of it: the
    tug-of-war that the paper takes negative transfer for (Sections 4.2 and 5.2). A block deeper than the
    deepest that the term aligns has no value. A term of weight 0 is measured too, though it trains nothing.

    The images are training images, drawn once and class-balanced as the probe's are, with their labels and
    without augmentation. Student and losses run in eval mode (where a distillation token answers as the mean
    of both) and without autocast, so in the precision of
    their weights: float32, but for a trainer whose precision is a "true" half. Training is not touched:
    weights, `.grad`, generators and flags are afterwards what they were. Under DDP every rank does the
    same work.

    What it does not say: these are gradients of the mean over `n_images`, without dropout and augmentation.
    A batch of training has others, and with few images a cosine within some tenths of zero may be
    noise. Nor does it say how hard a term pulls, only where to.

    Cost of a probe against a training step of as many images, teacher included in both: with one term on the
    last block 1.2 for CaiT-S24 into DeiT-Ti and 1.3 for the pair of the quickstart, with two 1.4 and 1.7
    (tests/benchmarks/bench_conflict.py: two threads of a CPU). The memory is that of such a
    step and of one gradient of the student a term.

    In a config, under `trainer`: `callbacks: [{class_path: distill_dynamics.callbacks.GradientConflict}]`.

    Args:
        every_n_epochs: how often; epoch 0 and the last are always among them. Left out, it is the
            probe's (`probe.every_n_epochs`).
        n_images: N, how many training images.
        seed: of the draw. It is not the run's: runs with other seeds look at the same images.

    Raises:
        UserError: a number that makes no sense; none where the probe is off; too few images.
    """

    def __init__(self, every_n_epochs: int | None = None, n_images: int = 32, seed: int = 0) -> None:
        if n_images < 1 or (every_n_epochs is not None and every_n_epochs < 1):
            raise UserError("GradientConflict: every_n_epochs and n_images are 1 or more")
        self.every_n_epochs = every_n_epochs
        self.n_images = n_images
        self.seed = seed
        self._blocks: list[list[nn.Parameter]]
        self._images: Tensor
        self._targets: Tensor
        self._index: Tensor
        self._terms: list[str] = []  # those that align blocks

    def on_fit_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Draw the images and find each block's parameters."""
        self._terms = [name for name, term in pl_module.terms.items() if term.pairs]
        if not self._terms:
            rank_zero_warn("GradientConflict: model.terms aligns no blocks, so no gradient is logged")
            return
        self._blocks = block_parameters(pl_module.student)
        if not any(self._blocks):
            rank_zero_warn(
                f"GradientConflict: no parameter of {pl_module.student.name} is trained in a block that timm "
                "names by its module, so nothing is logged"
            )
            return
        self.period = self.every_n_epochs or _probe_period(trainer)
        data = datamodule(trainer)
        of_views = of_side(data, views_side(data))
        probe_set = data.probe_set(self.n_images, self.seed, split="train", **of_views)
        self._images = probe_set.normalised(data.mean, data.std)
        self._index = torch.as_tensor(probe_set.indices)
        self._targets = torch.as_tensor(data.sources["train"].targets[probe_set.indices])

    def measure(self, trainer: Trainer, pl_module: Distiller, epoch: int) -> None:
        """Log the cosines."""
        with isolated(pl_module), torch.enable_grad(), one_rank():
            weight = next(pl_module.student.parameters())
            images = self._images.to(device=weight.device, dtype=weight.dtype)
            progress = progress_after(trainer, epoch)
            batch = {"targets": self._targets, "index": self._index, "progress": progress}
            batch = {name: v.to(weight.device) if isinstance(v, Tensor) else v for name, v in batch.items()}
            parts = {name: part.gated for name, part in pl_module.losses(images, batch).items()}
            weights = pl_module.weights_at(progress)
            terms = {name: parts.pop(name) for name in self._terms}
            weighted = [weights[name] * part for name, part in parts.items()]
            other = torch.stack(weighted).sum() if weighted else images.new_zeros(())
            cosines = conflict(terms, weights, other, self._blocks)
        metrics = {
            f"dynamics/conflict/{term}/block_{block:02d}": cosine
            for term, of_blocks in cosines.items()
            for block, cosine in enumerate(of_blocks, start=1)
            if math.isfinite(cosine)
        }
        self.log_probe(trainer, epoch, metrics)


def _probe_period(trainer: Trainer) -> int:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, DynamicsProbe) and callback.every_n_epochs:
            return callback.every_n_epochs
    raise UserError(
        "GradientConflict: probing is off (probe.every_n_epochs), so give it every_n_epochs itself"
    )
