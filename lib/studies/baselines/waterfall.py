"""Why 2021 failed: start from the 2021 recipe and mend one thing at a time.

2021 trained RNNs on the two-way graph of 4,134 cities with lengths rounded to 0.1 km, kept both
directions of each pair before a random split, gave the endpoints as a prefix, and judged samples by
comparison with the one stored path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from citypaths import decoding
from citypaths.data.splits import Split
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import size_dataset, train_arm
from citypaths.map.graph import CityGraph, jittered, rounded
from citypaths.sizes import Size
from citypaths.training.loop import Trained


@dataclass(frozen=True)
class Rung:
    """One state of the recipe: what is trained, how it is decoded, how it is judged.

    Attributes:
        mended: what this rung changes from the one before. weights: "rounded" to 0.1 km, "exact"
        or "jittered" edge lengths. metric: the column of `judge` that is reported.
    """

    mended: str
    weights: str = "rounded"
    split: Split = "ordered"
    endpoints: str = "prefix"
    coordinates: str = "none"
    decoder: str = "sample"
    checked: bool = False
    metric: str = "exact"

    @property
    def training(self) -> tuple[str, ...]:
        """What decides the trained model; rungs that agree on it share one."""
        return (self.weights, self.split, self.endpoints, self.coordinates)


def rungs() -> list[Rung]:
    """Return the rungs in the order of mending."""
    changes: list[dict[str, Any]] = [
        {"mended": "2021 recipe: exact match of a sample"},
        {"mended": "judge by length, not by identity", "metric": "success"},
        {"mended": "unrounded kilometres", "weights": "exact"},
        {"mended": "greedy instead of sampling", "decoder": "greedy"},
        {"mended": "beam of 8", "decoder": "beam"},
        {"mended": "endpoints at every step", "endpoints": "every_step"},
        {"mended": "coordinates as inputs", "coordinates": "raw"},
        {"mended": "illegal hops checked", "checked": True},
        {"mended": "leak-free split (uncontained)", "split": "pair"},
        {"mended": "clean labels (jittered lengths)", "weights": "jittered"},
    ]
    state, ladder = Rung(""), []
    for change in changes:
        state = replace(state, **change)
        ladder.append(state)
    return ladder


WEIGHTS: dict[str, Callable[[CityGraph], CityGraph]] = {
    "rounded": rounded,
    "exact": lambda graph: graph,
    "jittered": jittered,
}


def decode(rung: Rung, queries: Queries, arm: str, trained: Trained) -> Scored:
    """Decode a rung's queries as it says, and judge what comes of it."""
    options: dict[str, Any] = {"checked_by": queries.graph} if rung.checked else {}
    options |= {"width": 8} if rung.decoder == "beam" else {}
    found = queries.decode(getattr(decoding, rung.decoder), trained.model, **options)
    kind = {"family": rung.decoder, "attempts": options.get("width", 1)}
    kind |= {"regime": "checked" if rung.checked else "closed_book"}
    columns = {"study": "waterfall", "orientation": queries.graph.orientation}
    columns |= {"graph": queries.graph.fingerprint[:12]}
    columns |= {"split": rung.split if rung.split == "ordered" else "uncontained"}
    method = Method.of(arm, trained, name=rung.mended, **kind)
    return score(queries, found, method, **columns)


def climb(size: Size, graph: CityGraph, arm: str, seed: int) -> pd.DataFrame:
    """Train what the rungs need and return one row a rung: its label, metric, value and ledger row.

    `graph` is the size's two-way graph with exact lengths; every rung is judged on the graph, the
    split and the lengths it was trained with.
    """
    trained: dict[tuple[str, ...], tuple[Trained, Queries]] = {}
    table = []
    for rung in rungs():
        if rung.training not in trained:
            trained[rung.training] = _train(rung, size, graph, arm, seed)
        model, queries = trained[rung.training]
        row = decode(rung, queries, arm, model).row
        value = row[rung.metric]
        table.append({"rung": rung.mended, "metric": rung.metric, "value": value, "row": row})
    return pd.DataFrame(table)


def _train(
    rung: Rung, size: Size, graph: CityGraph, arm: str, seed: int
) -> tuple[Trained, Queries]:
    weighted = WEIGHTS[rung.weights](graph)
    dataset = size_dataset(size, weighted, rung.split, make=True)
    queries = Queries.of(dataset)
    queries = queries if rung.split == "ordered" else queries.uncontained()
    inputs = {"endpoints": rung.endpoints, "coordinates": rung.coordinates}
    model = train_arm(size, dataset, arm, seed, variant=inputs)
    return model, queries.first(size.queries)
