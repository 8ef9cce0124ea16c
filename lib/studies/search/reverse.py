"""A model that walks backwards: its likelihood of a path from the target to the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from citypaths.data.batches import Batch
from citypaths.decoding.scorers import Likelihood
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models.base import Network, build, register


@register("reverse", writes=False)
class Reverse(Network):
    """A model of paths that walks from the target back to the source: backward consistency.

    Its energy of a path is minus the log-probability of the reversed path; added to a generator's
    own it asks that both directions agree.

    Args:
        graph: decides the cities. model, settings: of the path model within.
    """

    def __init__(self, graph: CityGraph, *, within: str = "rnn", **settings: Any) -> None:
        super().__init__()
        self.cities = len(graph)
        self.model = build(within, graph, **settings)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of the model within."""
        return self.model.flops_per_step(loops)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per hop, backwards."""
        return self.model.loss(reversed_batch(batch), loops)

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`: nats of the reversed path."""
        lengths = np.repeat(paths.lengths, paths.lengths)
        at = np.arange(len(paths.tokens)) - np.repeat(paths.offsets[:-1], paths.lengths)
        first = np.repeat(paths.offsets[:-1], paths.lengths)
        turned = Paths(paths.tokens[first + lengths - 1 - at], paths.offsets)
        return Likelihood(self.model).score(target, source, turned)

    def flops(self, paths: Paths) -> np.ndarray:
        """See `Likelihood.flops`."""
        return Likelihood(self.model).flops(paths)

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))


def reversed_batch(batch: Batch) -> Batch:
    """Return the batch of the paths from target to source."""
    real = batch.labels >= 0
    hops, steps = real.sum(1, keepdim=True), torch.arange(real.shape[1], device=real.device)
    whole = torch.cat([batch.source[:, None], batch.labels.clamp_min(0)], 1)
    turned = whole.gather(1, (hops - torch.arange(whole.shape[1], device=real.device)).clamp_min(0))
    cities = torch.where(steps < hops, turned[:, :-1], 0)
    labels = torch.where(steps < hops, turned[:, 1:], batch.labels)
    return Batch(batch.target, batch.source, cities, labels)
