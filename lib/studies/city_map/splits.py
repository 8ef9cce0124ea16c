"""How much of a test set training has already shown: by the training set's size, and by split."""

from __future__ import annotations

import numpy as np
import pandas as pd

from citypaths.data.dataset import make_dataset
from citypaths.data.splits import SPLITS, recipe_for
from citypaths.files import digest
from citypaths.lab import size_dataset
from citypaths.map.graph import CityGraph
from citypaths.sizes import Size


def leak_by_training_size(size: Size, graph: CityGraph, steps: int = 5) -> pd.DataFrame:
    """Return, for growing training sets, which share of random test pairs lies inside one.

    Columns: training paths, queries, contained (share), and mean hops of both kinds.
    """
    rows = []
    for goal in np.geomspace(size.train / 16, size.train, steps).round().astype(int):
        recipe = recipe_for(graph, train=int(goal), valid=0, test=size.test, seed=1)
        folder = size.folder / "leak" / digest(recipe.to_json(), 12)
        smaller = make_dataset(graph, recipe, folder)
        held, inside = smaller.queries("test")
        row = {"training paths": smaller.counts["train"], "queries": len(held)}
        row |= {"contained": inside.mean(), "hops, contained": held.hops[inside].mean()}
        rows.append(row | {"hops, uncontained": held.hops[~inside].mean()})
    return pd.DataFrame(rows)


def compare_splits(size: Size, graph: CityGraph) -> pd.DataFrame:
    """Return one row a split of the size's dataset: counts, share contained, mean hops."""
    rows = []
    for name in SPLITS:
        dataset = size_dataset(size, graph, name, make=True)
        held, inside = dataset.queries("test")
        row = {"split": name, **dataset.counts, "contained": inside.mean()}
        middle = dataset.shard(len(dataset.shards) // 2)
        rows.append(row | {"hops, a shard": middle.hops.mean(), "hops, test": held.hops.mean()})
    return pd.DataFrame(rows)
