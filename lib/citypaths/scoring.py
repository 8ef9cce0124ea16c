"""Every method of a notebook on the same queries: judged paths and rows for the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from citypaths import search
from citypaths.dataset import make_dataset, recipe_digest
from citypaths.floors import Found, floors, hop_use, rarest_hop
from citypaths.graph import CityGraph
from citypaths.lab import Queries, ledger_row, size_dataset
from citypaths.metrics import by_count
from citypaths.paths import Paths
from citypaths.sizes import Size
from citypaths.splits import SPLITS, recipe_for
from citypaths.train import Trained


@dataclass(frozen=True, eq=False)
class Scored:
    """A method's paths on some queries, judged: `judged` a row a query, `row` for the ledger."""

    found: Found
    judged: pd.DataFrame
    row: dict[str, Any]

    @property
    def name(self) -> str:
        """The method, or the model where there is one, with its method unless that is greedy."""
        model, method = self.row["model"], self.row["method"]
        return method if model == "none" else model if method == "greedy" else f"{model}, {method}"


def score(queries: Queries, found: Found, **names: Any) -> Scored:
    """Judge what a method found; `names` are ledger columns such as method, model and regime."""
    judged = queries.judge(found)
    return Scored(found, judged, ledger_row(judged, found) | names)


def score_floors(queries: Queries, memory: list[Paths]) -> list[Scored]:
    """Score every non-neural floor; `memory` holds the training paths of the memorizer."""
    names = {"model": "none", "regime": "open_map"}
    rows = queries.rows
    return [
        score(queries, method(rows.source, rows.target), method=name, **names)
        for name, method in floors(queries.graph, memory).items()
    ]


def score_decoders(queries: Queries, arm: str, trained: Trained, seed: int = 0) -> list[Scored]:
    """Score a trained model with every decoder, closed-book and checked by the queries' graph."""
    check = {"checked_by": queries.graph}
    decoders: list[tuple[str, Any, dict[str, Any]]] = [
        ("greedy", search.greedy, {}),
        ("sample", search.sample, {"seed": seed}),
        ("beam 8", search.beam, {"width": 8}),
        ("greedy, checked", search.greedy, check),
        ("beam 8, checked", search.beam, {"width": 8} | check),
    ]
    shared = {"model": arm, "parameters": trained.model.parameters_count}
    shared |= {"training_flops": trained.training_flops}
    scored = []
    for method, decoder, options in decoders:
        found = queries.decode(decoder, trained.model, **options)
        regime = "checked" if "checked_by" in options else "closed_book"
        names = {"method": method, "regime": regime, "budget": options.get("width", 1)}
        scored.append(score(queries, found, **shared, **names))
    return scored


def board(scored: Iterable[Scored], columns: str) -> pd.DataFrame:
    """Return the ledger columns named in `columns` (apart by spaces), one row a method."""
    scored = list(scored)
    table = pd.DataFrame([s.row for s in scored], index=[s.name for s in scored])
    return table[columns.split()]


def well_travelled(queries: Queries, memory: list[Paths]) -> pd.Categorical:
    """Return each query's group by how many training paths take its path's rarest hop."""
    use = hop_use(queries.graph, memory)
    return by_count(rarest_hop(queries.graph, use, queries.rows.paths))


def leak_by_training_size(size: Size, graph: CityGraph, steps: int = 5) -> pd.DataFrame:
    """Return, for growing training sets, which share of random test pairs lies inside one.

    Columns: training paths, queries, contained (share), and mean hops of both kinds.
    """
    rows = []
    for goal in np.geomspace(size.train / 16, size.train, steps).round().astype(int):
        recipe = recipe_for(graph, train=int(goal), valid=0, test=size.test, seed=1)
        folder = size.folder / "leak" / recipe_digest(recipe)
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
