"""How the images of an optimiser's step are shared out to devices and accumulated batches."""

from lightning.pytorch import Trainer

from distill_dynamics.errors import UserError


def share_over_devices(trainer: Trainer, global_batch: int, most: int, accumulated: int) -> tuple[int, int]:
    """`share_batch` for a trainer's devices; sets its accumulation, `accumulated` if it was set before.

    Raises UserError also where the trainer was told to accumulate by itself.
    """
    if trainer.accumulate_grad_batches not in (1, accumulated):
        raise UserError("trainer.accumulate_grad_batches follows from data.global_batch: give one of the two")
    batch_size, trainer.accumulate_grad_batches = share_batch(global_batch, most, trainer.world_size)
    return batch_size, trainer.accumulate_grad_batches


def share_batch(global_batch: int, most: int, devices: int) -> tuple[int, int]:
    """How many images a device takes at once (`most` at most) and how often, to make `global_batch`.

    Raises UserError where that cannot be met to the image.
    """
    share, rest = divmod(global_batch, devices)
    if rest:
        raise UserError(f"data.global_batch: {global_batch} images cannot be shared out to {devices} devices")
    batch = min(most, share)
    if share % batch:
        fits = max(size for size in range(1, batch) if share % size == 0)
        raise UserError(
            f"data.global_batch: {global_batch} images are {share} for each of {devices} devices, which "
            f"is no multiple of data.batch_size {batch}; {fits} would do"
        )
    return batch, share // batch
