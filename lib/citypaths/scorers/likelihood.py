"""Likelihoods as energies: the generator's own, and that of a model which walks backwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from citypaths.batches import Batch, batch_of_paths
from citypaths.graph import CityGraph
from citypaths.models.base import Network, PathModel, build, nats, register
from citypaths.paths import Paths
from citypaths.scorers.energies import LOST

AT_ONCE = 2**14  # cities in one forward pass


class Likelihood:
    """Minus the log-probability of a path under a model: nats.

    A path that does not lead from its source to its target has `LOST`.
    """

    def __init__(self, model: PathModel) -> None:
        self.model = model

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`: nats, float64 [N]; 0 for a source that is its own target."""
        energies = self.hop_energies(source, target, paths).sum(1)
        ids, last = paths.padded(), np.maximum(paths.lengths - 1, 0)
        if not ids.shape[1]:
            return np.full(len(ids), LOST)
        good = (ids[:, 0] == source) & (ids[np.arange(len(ids)), last] == target)
        return np.where(good, energies, LOST)

    def hop_energies(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return -log p of each hop, float64 [N, hops of the longest path], 0 after the end.

        Raises:
            ValueError: not one path a query.
        """
        if not len(source) == len(target) == len(paths):
            raise ValueError(f"{len(source)} queries but {len(paths)} paths")
        out = np.zeros((len(paths), max(0, int(paths.lengths.max(initial=1)) - 1)))
        rows = np.flatnonzero(paths.lengths > 1)
        rows = rows[np.argsort(paths.lengths[rows], kind="stable")]  # alike in length: no padding
        where, was_training = next(self.model.parameters()).device, self.model.training
        self.model.eval()
        with torch.inference_mode():
            for some in np.array_split(rows, -(-int(paths.lengths[rows].sum()) // AT_ONCE) or 1):
                if len(some):
                    batch = batch_of_paths(paths.take(some), where)
                    ids = (
                        torch.as_tensor(np.asarray(x)[some], device=where) for x in (source, target)
                    )
                    batch = Batch(*ids, batch.cities, batch.labels)
                    each = nats(self.model(batch), batch, "none").view_as(batch.labels)
                    out[some, : each.shape[1]] = each.double().cpu().numpy()
        self.model.train(was_training)
        return out

    def flops(self, paths: Paths) -> np.ndarray:
        """Return a step of the model a hop, and its start."""
        hops = np.maximum(paths.lengths - 1, 0)
        return hops * float(self.model.flops_per_step()) + (hops > 0) * self.model.flops_to_start

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))


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


class Sum:
    """The weighted sum of scorers, each of which is paid for."""

    def __init__(self, *parts: Any, weights: tuple[float, ...] | None = None) -> None:
        self.parts = parts
        self.weights = weights or (1.0,) * len(parts)
        if len(self.weights) != len(parts):
            raise ValueError(f"{len(parts)} scorers but {len(self.weights)} weights")

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`."""
        terms = (
            w * p.score(source, target, paths)
            for w, p in zip(self.weights, self.parts, strict=True)
        )
        return np.sum(list(terms), axis=0)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return those of all parts."""
        return np.sum([p.flops(paths) for p in self.parts], axis=0)

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return those of all parts."""
        return np.sum([p.lookups(paths) for p in self.parts], axis=0)
