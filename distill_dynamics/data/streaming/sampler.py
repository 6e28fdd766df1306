"""The order of training images that lie in chunks."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.data.keyed import Key, KeyedSampler, mixed
from distill_dynamics.data.streaming.chunks import ChunkSource


class ChunkSampler(KeyedSampler):
    """A KeyedSampler whose order is kind to chunks: at any time the images of a few of them are drawn.

    The chunks come in a random order for each (seed, epoch). The nodes take equal parts of it, one after the
    other, so that each fetches only its own part of the data; in a node's part every image is moved to a
    random place within the next `window` chunks. A node's ranks then take turns, as in a KeyedSampler: the
    order is a function of (seed, epoch, number of nodes), and any number of ranks on one node draws the same
    images in the same steps. Copies (`repeats`) of an image lie side by side and so come on different ranks.
    """

    def __init__(self, source: ChunkSource, *, window: int, nodes: int = 1, **settings: int):
        super().__init__(len(source.targets), **settings)
        self.source, self.window, self.nodes = source, window, nodes
        self.of_node = self.num_replicas // nodes

    def _order(self) -> NDArray[np.int64]:
        """The images of this rank's node, each once, in the order of this epoch."""
        generator = np.random.default_rng(mixed(self.seed, self.epoch))
        bounds = self.source.chunks.bounds
        turns = generator.permutation(len(bounds) - 1)
        places = np.concatenate([np.arange(bounds[chunk], bounds[chunk + 1]) for chunk in turns])
        turn = np.repeat(np.arange(len(turns)), np.diff(bounds)[turns])
        moved = turn + generator.uniform(0, self.window, len(turn))
        images = np.empty(len(places), np.int64)
        images[self.source.places] = np.arange(len(places))
        count = -(-len(self.order) * self.of_node // self.repeats)
        begin = self.rank // self.of_node * count
        part = slice(begin, begin + count)
        return images[places[part][np.argsort(moved[part], kind="stable")]]

    def __iter__(self) -> Iterator[Key]:
        epoch, seen = self.seen
        order = self._order()
        among = self.rank % self.of_node  # the node's ranks
        views = range(among, len(self) * self.of_node, self.of_node)
        for view in views[seen if epoch == self.epoch else 0 :]:
            yield Key(self.epoch, int(order[view // self.repeats]), view % self.repeats)
