"""An ImageFolder that `convert` has put into chunks: for object storage, or data larger than a disk."""

import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

from distill_dynamics.data.image_folder import ImageFolder
from distill_dynamics.data.sources import Split
from distill_dynamics.data.streaming.chunks import DATASET, IMAGES, INDEX, Chunks, ChunkSource
from distill_dynamics.data.streaming.sampler import ChunkSampler
from distill_dynamics.data.streaming.storage import fetch, is_stored, is_url
from distill_dynamics.errors import UserError


class StreamedImageFolder(ImageFolder):
    """What `python -m distill_dynamics convert` wrote, with ImageFolder's transforms, probe set and views.

    Images come in the order of `ChunkSampler`, which keeps to a few chunks at a time; a converted data set
    gives the probe set and the views of (seed, epoch, image, repeat) that the ImageFolder gives, unless
    images were re-encoded. What was converted without labels, as for UnlabelledFolder, is read with
    `labels: false`, and has the validation images that were converted with it.

    Args:
        data_dir: a folder, or a URL (s3://, or gs://, which is untested). Server and credentials are those of
            the environment: AWS_ENDPOINT_URL names any that speaks S3.
        cache_dir: a folder on a local disk that chunks are copied to when first needed; shared by the ranks
            of a node, by runs and by data sets. Needed for a URL; a folder is read in place without it. A
            worker waits for its chunk, without using its core: more `num_workers` than cores hide the wait.
        cache_gb: how large it may become, all data sets together, in 10^9 bytes; chunks read longest ago make
            room. None keeps all.
        window: the images of so many chunks are shuffled with one another. A node's disk has to hold them.
        skip_unreadable, reduced_decode, kwargs: of `ImageFolder`.
    """

    def __init__(
        self,
        data_dir: str,
        cache_dir: str | None = None,
        cache_gb: float | None = None,
        window: int = 16,
        skip_unreadable: bool = False,
        reduced_decode: bool = False,
        **kwargs: Any,
    ):
        super().__init__(data_dir, skip_unreadable, reduced_decode, **kwargs)
        if window < 1:
            raise UserError(f"data.window: {window} must be at least 1")
        if cache_dir is None and (is_url(data_dir) or cache_gb is not None):
            raise UserError(f"data.cache_dir: name a folder on a local disk for the chunks of {data_dir}")
        self.cache_dir = cache_dir
        self.cache_gb = cache_gb
        self.window = window
        self._cache = None if cache_dir is None else Path(cache_dir).expanduser()
        self._place = data_dir.rstrip("/") if is_url(data_dir) else str(Path(data_dir).expanduser())

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What dataset.json holds. Read anew by every run: the data may have been converted again."""
        path = f"{self._place}/{DATASET}"
        remote = is_url(path)
        if not (is_stored(path, "data.data_dir") if remote else Path(path).is_file()):
            raise UserError(
                f"data.data_dir: {self._place if remote else Path(self._place).resolve()} holds no finished "
                f"conversion ({DATASET} is missing); `python -m distill_dynamics convert` writes one"
            )
        if not remote:
            return json.loads(Path(path).read_text())
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, DATASET)
            fetch(path, local)
            return json.loads(local.read_text())

    def find_classes(self) -> list[str]:
        """What the conversion says. UserError where it has no labels, and they are asked for."""
        return list(self._facts["classes"]) if self._has_labels() else []

    @property
    def has_val(self) -> bool:
        """Whether validation images were converted."""
        return "val" in self.sources or "val" in self._facts

    def _has_labels(self) -> bool:
        if self.labels and not self._facts.get("labels", True):
            raise UserError(
                f"data.labels: the training images of {self._place} have no classes: set "
                "data.init_args.labels: false"
            )
        return self.labels

    def load(self, split: Split) -> ChunkSource:
        """Reads what is known of the split's images; chunks are fetched and images decoded when drawn.

        Raises UserError where there is no finished conversion, where the storage cannot be reached or
        `cache_dir` not be written, or for a `cache_gb` that cannot hold the chunks drawn from at a time.
        """
        self._has_labels()
        self.classes = self._facts["classes"]
        place = f"{self._place}/{split}"
        cache = None if self._cache is None else self._cache / self._facts["id"] / split
        if cache is not None:
            for name in (INDEX, IMAGES):
                fetch(f"{place}/{name}", cache / name)
        known = cache or Path(place)
        index = json.loads((known / INDEX).read_text())
        limit = None if self.cache_gb is None else int(self.cache_gb * 1e9)
        if limit is not None:
            least = 2 * self.window * max(file["chunk_bytes"] for file in index["chunks"])
            if limit < least:
                raise UserError(
                    f"data.cache_gb: {self.cache_gb} is too little for data.window {self.window}, "
                    f"which needs {least / 1e9:.3g}; or make the window smaller"
                )
        return ChunkSource(Chunks(place, index, cache, limit), known / IMAGES)

    def order_depends_on(self) -> dict[str, Any]:
        """Of any data, and what `ChunkSampler` adds."""
        own = {"nodes": self._nodes, "window": self.window, "conversion": self._facts["id"]}
        return super().order_depends_on() | own

    @property
    def _nodes(self) -> int:
        return 1 if self.trainer is None else self.trainer.num_nodes

    def _train_sampler(self, **settings: int) -> ChunkSampler:
        source = self._source("train")
        assert isinstance(source, ChunkSource)
        return ChunkSampler(source, window=self.window, nodes=self._nodes, **settings)
