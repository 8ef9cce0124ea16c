"""The baselines: floors that need no learning, and a trained model with every decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.data.splits import TRAIN
from citypaths.judging.floors import hop_use, rarest_hop, stored_hops, walk
from citypaths.judging.methods import Method
from citypaths.judging.metrics import by_count
from citypaths.judging.queries import Queries
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.training.loop import Trained

WALKS = ("random walk", "geo-greedy", "greedy hop + to go")


def floors(graph: CityGraph, memory: list[Paths] | None = None) -> dict[str, Callable[..., Found]]:
    """Return every floor as a function of (source, target), by name, cheapest first.

    `memory` (training paths) adds the memorizer that stitches stored hops.
    """
    table: dict[str, Callable[..., Found]] = {
        "random walk": partial(walk, graph, hop_weight=-1.0),
        "geo-greedy": partial(walk, graph),
        "greedy hop + to go": partial(walk, graph, hop_weight=1.0),
        "greedy best-first": partial(best_first, graph, g_weight=0.0),
        "weighted A* (1.05)": partial(best_first, graph, h_weight=1.05, reopen=False),
        "A*": partial(best_first, graph),
        "Dijkstra": partial(best_first, graph, h_weight=0.0),
    }
    if memory is not None:
        table["stitched hops"] = partial(best_first, stored_hops(graph, memory))
    return table


def floor_methods(graph: CityGraph, memory: list[Paths]) -> list[Method]:
    """Return every floor as a method; `memory` holds the training paths of the memorizer."""

    def answer(find: Callable[..., Found], queries: Queries) -> Found:
        return find(queries.rows.source, queries.rows.target)

    methods = []
    for name, find in floors(graph, memory).items():
        kind = {"family": "floor" if name in WALKS else "graph search", "regime": "open_map"}
        methods.append(Method(name=name, run=partial(answer, find), **kind))
    return methods


def decoders(graph: CityGraph, arm: str, trained: Trained, seed: int) -> list[Method]:
    """Return a trained model with every decoder, closed-book and checked by the graph."""

    def answer(decoder: Callable[..., Found], options: dict[str, Any], queries: Queries) -> Found:
        return queries.decode(decoder, trained.model, **options)

    check = {"checked_by": graph}
    table: list[tuple[str, str, Callable[..., Found], dict[str, Any]]] = [
        ("greedy", "greedy", decoding.greedy, {}),
        ("sample", "sample", decoding.sample, {"seed": seed}),
        ("beam 8", "beam", decoding.beam, {"width": 8}),
        ("greedy", "greedy", decoding.greedy, check),
        ("beam 8", "beam", decoding.beam, {"width": 8} | check),
    ]
    methods = []
    for name, family, decoder, options in table:
        regime = "checked" if "checked_by" in options else "closed_book"
        kind = {"family": family, "regime": regime, "attempts": options.get("width", 1)}
        run = partial(answer, decoder, options)
        methods.append(Method.of(arm, trained, name=name, run=run, **kind))
    return methods


def compare(arms: Mapping[str, Trained]) -> pd.DataFrame:
    """Return one row an arm: parameters, training FLOPs and seconds, and its last evaluation."""
    rows = {
        name: {
            "parameters": trained.model.parameters_count,
            "training FLOPs": trained.training_flops,
            "seconds": trained.seconds,
            **trained.history.iloc[-1][["valid_loss", "legal", "arrives", "success"]],
        }
        for name, trained in arms.items()
    }
    return pd.DataFrame(rows).T


def trained_queries(dataset: Dataset, count: int) -> Queries:
    """Return so many training queries of the middle shard: what a model should know by heart."""
    shard = dataset.shard(len(dataset.shards) // 2)
    rows = shard.take(shard.part == TRAIN)
    return Queries.of_rows(dataset.graph, rows, np.ones(len(rows), bool)).first(count)


def faults(judged: pd.DataFrame) -> pd.DataFrame:
    """Return how many of the queries without success show each first fault, and its share."""
    failed = judged[~judged["success"]]
    late = np.where(failed["arrives"], "legal, but too long", "legal, but ends elsewhere")
    kinds = failed["illegal"].where(failed["illegal"] != "", late)
    counts = kinds.str.replace("_", " ").value_counts().to_frame("queries")
    return counts.assign(share=counts["queries"] / max(1, len(failed)))


def well_travelled(queries: Queries, memory: list[Paths]) -> pd.Categorical:
    """Return each query's group by how many training paths take its path's rarest hop."""
    use = hop_use(queries.graph, memory)
    return by_count(rarest_hop(queries.graph, use, queries.rows.paths))
