"""A share of a dataset's training paths: nested subsets, in an order that a hash decides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from citypaths.data.dataset import Dataset
from citypaths.data.shards import Rows, count_rows
from citypaths.data.splits import TRAIN, Recipe
from citypaths.map.graph import unit_hash
from citypaths.map.paths import Paths

SALT = 0x5348415245  # the split draws the same pairs by hashes of its own


def in_share(rows: Rows, share: float, draw: int) -> np.ndarray:
    """Return which rows lie in a share (0 to 1) of the pairs, bool [rows].

    A larger share of the same `draw` holds all of a smaller one.
    """
    return unit_hash(draw, rows.source, rows.target, SALT) < share


@dataclass(frozen=True)
class SharedRecipe(Recipe):
    """A dataset's recipe with the `share` (0 to 1) of its training paths that a `draw` leaves."""

    share: float = 1.0
    draw: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is above 0 and at most 1, not {self.share}")


@dataclass(frozen=True, eq=False)
class Share(Dataset):
    """A dataset with a share of its training paths; validation and test rows are the whole's."""

    whole: Dataset

    @classmethod
    def of(cls, whole: Dataset, share: float, draw: int = 0) -> Share:
        """Return the share (0 to 1) of a dataset that a draw leaves; every shard is read once.

        Raises:
            ValueError: the share is not above 0 and at most 1.
        """
        recipe = SharedRecipe(**whole.recipe.to_json(), share=share, draw=draw)
        fewer = cls(whole.folder, whole.graph, recipe, whole.shards, whole)
        counts = [count_rows(fewer.shard(i)) for i in range(len(whole.shards))]
        shards = [entry | count for entry, count in zip(whole.shards, counts, strict=True)]
        return cls(whole.folder, whole.graph, recipe, shards, whole)

    def shard(self, i: int) -> Rows:
        """Read shard i of the whole and leave out the training paths that are not in the share."""
        rows, recipe = self.whole.shard(i), self.recipe
        return rows.take((rows.part != TRAIN) | in_share(rows, recipe.share, recipe.draw))

    def queries(self, part: str) -> tuple[Rows, np.ndarray]:
        """Return the rows of a part and which are contained in training paths of the whole."""
        return self.whole.queries(part)


def halves(dataset: Dataset, share: float, draw: int) -> tuple[Paths, Paths]:
    """Return the training paths in a share (0 to 1) and the others; either may be empty."""
    rows = dataset.rows("train")
    inside = in_share(rows, share, draw)
    return rows.paths.take(inside), rows.paths.take(~inside)
