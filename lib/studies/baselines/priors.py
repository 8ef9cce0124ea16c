"""Cheap priors for an RNN, each an ablation at equal training tokens: what is worth having?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.map.graph import CityGraph
from citypaths.models.base import FEATURES, on_sphere
from citypaths.models.rnn import RECURRENT
from citypaths.sizes import Size
from citypaths.training.recipes import arms, recipe

CHAIN = 1.02  # gain from one unit of a chain to the next


def place_cells(graph: CityGraph, width: int) -> np.ndarray:
    """Return Gaussian bumps around `width` cities drawn by chance, [V, width], standardised."""
    flat, random = on_sphere(graph), np.random.default_rng(0)
    centres = flat[random.choice(len(graph), min(width, len(graph)), replace=False)]
    square = ((flat[:, None] - centres[None]) ** 2).sum(-1)
    features = np.exp(-square / max(1e-9, 2 * np.quantile(square, 0.05)))
    return (features - features.mean(0)) / np.maximum(features.std(0), 1e-9)


def periodic(graph: CityGraph, width: int) -> np.ndarray:
    """Return sines and cosines of longitude and latitude at doubling frequencies, [V, any]."""
    place = np.stack([graph.lon, graph.lat], 1)
    place = (place - place.min(0)) / np.maximum(np.ptp(place, axis=0), 1e-9)
    angle = np.pi * 2.0 ** np.arange(min(8, max(1, width // 4))) * place[..., None]
    return _waves(angle.reshape(len(graph), -1))


def fourier(graph: CityGraph, width: int) -> np.ndarray:
    """Return sines and cosines along random directions, [V, width]: smooth, with no grid."""
    directions = np.random.default_rng(0).normal(0, 4, (3, max(1, width // 2)))
    return _waves(on_sphere(graph) @ directions)


def _waves(angle: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sin(angle), np.cos(angle)], 1) * np.sqrt(2)


def chain(width: int) -> Tensor:
    """Return the non-normal start of Orhan and Pitkow (2020): unit i feeds unit i + 1.

    It stands on the subdiagonal because torch multiplies recurrent weights from the left.
    """
    return CHAIN * torch.diag(torch.ones(width - 1), -1)


FEATURES.update(place_cells=place_cells, periodic=periodic, fourier=fourier)
RECURRENT.update(
    identity=torch.eye,
    chain=chain,
    identity_chain=lambda width: (torch.eye(width) + chain(width)) / 2,
)

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
