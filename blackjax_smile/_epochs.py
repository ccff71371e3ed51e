"""Whether minibatches go through their data in epochs, told from their rows.

Of rows that are drawn independently out of N, one comes a second time after about the square
root of N of them, and of those that follow few were seen before. In epochs none comes twice
before all have come, and then all that follow were seen. It matters because the noise of an epoch
sums to zero, which the sampler cannot know: its posterior is too narrow (`benchmarks/README.md`).
"""

import numpy as np
from blackjax.types import ArrayTree
from jax import tree

__all__ = ["IN_EPOCHS", "EpochDetector"]

IN_EPOCHS = (
    "The minibatches come in epochs, every row once in each, as a shuffling data loader gives "
    "them. Their noise sums to zero over an epoch, and a chain that sees all of it has a posterior "
    "too narrow (its variance was 0.6 of the exact one). Draw rows with replacement: "
    "torch.utils.data.RandomSampler(data, replacement=True), for example."
)

#: Fewer minibatches without a row that came before say nothing.
MIN_DISTINCT = 3

#: Share of rows seen before, of so many, above which a new epoch has begun. Independent rows have
#: a share p with probability exp(-p^2 N / 2).
SHARE, MIN_ROWS = 0.6, 50

#: After so many minibatches nobody looks any more.
MAX_LOOKED = 20_000

#: Rows that are remembered; if there are more, every second of them, of the fourth, ...
MAX_SEEN = 200_000

#: Numbers of a row, evenly spaced, by which it is known.
NUM_ELEMENTS = 256


class EpochDetector:
    """Looks at one minibatch after another until it knows; ``in_epochs`` is False before."""

    def __init__(self) -> None:
        self.in_epochs = False
        self._looks = MAX_LOOKED
        self._seen: set[int] = set()
        self._modulus = 1
        self._num_distinct = 0
        self._came_twice = False
        self._again = self._counted = 0

    def look(self, minibatch: ArrayTree) -> None:
        """Take in a minibatch, leaves of one leading axis."""
        if self._looks == 0:
            return
        self._looks -= 1
        rows = [row for row in _fingerprints(minibatch) if row % self._modulus == 0]
        if self._came_twice:
            self._again += sum(row in self._seen for row in rows)
            self._counted += len(rows)
            if self._counted >= MIN_ROWS:
                self._conclude(self._again >= SHARE * self._counted)
            return
        before = len(self._seen)
        self._seen.update(rows)
        if len(self._seen) == before + len(rows):
            self._num_distinct += 1
            self._thin()
        elif self._num_distinct >= MIN_DISTINCT:
            self._came_twice = True
        else:
            self._conclude(False)

    def _thin(self) -> None:
        if len(self._seen) > MAX_SEEN:
            self._modulus *= 2
            self._seen = {row for row in self._seen if row % self._modulus == 0}

    def _conclude(self, in_epochs: bool) -> None:
        self.in_epochs, self._looks = in_epochs, 0
        self._seen.clear()


def _fingerprints(minibatch: ArrayTree) -> list[int]:
    """Return a number for each row; none if the leaves have no common leading axis."""
    leaves = [x for x in map(np.asarray, tree.leaves(minibatch)) if x.ndim]
    if len({len(x) for x in leaves}) != 1:
        return []
    parts = []
    for leaf in leaves:
        flat = leaf.reshape(len(leaf), -1)
        some = np.ascontiguousarray(flat[:, :: max(1, flat.shape[1] // NUM_ELEMENTS)])
        parts.append(some.view(np.uint8).reshape(len(leaf), -1))
    return [hash(row.tobytes()) for row in np.concatenate(parts, axis=1)]
