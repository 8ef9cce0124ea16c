"""The baselines: floors that need no learning, a model with every decoder, and cheap priors.

A prior is an ablation of the plain model at equal training tokens: what is worth having?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.judging.floors import hop_use, rarest_hop, stored_hops, walk
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.metrics import by_count
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from citypaths.training.recipes import arms, recipe

WALKS = ("random walk", "geo-greedy", "greedy hop + to go")
MODEL_PRIORS: dict[str, dict[str, Any]] = {
    "untied output": {"tied": False},
    "coordinates: raw": {"coordinates": "raw"},
    "coordinates: place cells": {"coordinates": "place_cells"},
    "coordinates: periodic": {"coordinates": "periodic"},
    "coordinates: random Fourier (control)": {"coordinates": "fourier"},
    "recurrent: identity": {"recurrent": "identity"},
    "recurrent: chain": {"recurrent": "chain"},
    "recurrent: identity + chain": {"recurrent": "identity_chain"},
    "mixture of 2 softmaxes": {"softmaxes": 2},
}
TRAINING_PRIORS: dict[str, dict[str, Any]] = {
    "hindsight sub-paths, 25 %": {"hindsight": 0.25},
    "own predictions as input, 10 %": {"own_input": 0.1},
}


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


def ablate(
    size: Size, dataset: Dataset, queries: Queries, seeds: Sequence[int] = (0, 1, 2)
) -> list[Scored]:
    """Train the plain arm and each prior for every seed; return greedy, closed-book scores."""
    names = ["plain", *MODEL_PRIORS, *TRAINING_PRIORS]
    arm, scored = arms(size, "priors")[0], []
    for name in names:
        for seed in seeds:
            changes = {"variant": MODEL_PRIORS.get(name, {})} | TRAINING_PRIORS.get(name, {})
            trained = train_arm(size, dataset, recipe(size, arm, "priors"), seed, **changes)
            found = queries.decode(decoding.greedy, trained.model)
            kind = {"family": "greedy", "regime": "closed_book"}
            method = Method.of(arm, trained, name=f"prior: {name}", **kind)
            scored.append(score(queries, found, method, study="priors", seed=seed))
    return scored


def across_seeds(scored: Sequence[Scored]) -> pd.DataFrame:
    """Return success by prior over seeds: mean, least, most, and the mean gain over plain."""
    rows = pd.DataFrame([s.row for s in scored])
    table = rows.groupby("method", sort=False)["success"].agg(["mean", "min", "max", "count"])
    parameters = rows.groupby("method", sort=False)["parameters"].first()
    plain = table.loc["prior: plain", "mean"]
    return table.assign(gain=table["mean"] - plain, parameters=parameters)
