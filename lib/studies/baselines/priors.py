"""Cheap priors for an RNN, each an ablation at equal training tokens: what is worth having?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.sizes import Size
from citypaths.training.recipes import arms, recipe

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
