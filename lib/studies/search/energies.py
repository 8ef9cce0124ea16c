"""Energies of whole paths from learned networks: no hop is looked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from citypaths.data.batches import Batch
from citypaths.decoding.likelihood import Likelihood
from citypaths.decoding.scorers import LOST, Value
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models.base import Network, build, register
from studies.search.pairs import AT_ONCE, HopsToGo


@register("reverse", writes=False)
class Reverse(Network):
    """A model of paths that walks from the target back to the source: backward consistency.

    Its energy of a path is minus the log-probability of the reversed path; added to a generator's
    own it asks that both directions agree.

    Args:
        graph: decides the cities. settings: of the recurrent model within.
    """

    def __init__(self, graph: CityGraph, **settings: Any) -> None:
        super().__init__()
        self.cities = len(graph)
        self.model = build("rnn", graph, **settings)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of the model within."""
        return self.model.flops_per_step(loops)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per hop, backwards."""
        return self.model.loss(reversed_batch(batch), loops)

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return nats of each reversed path, float64 [N]."""
        lengths = np.repeat(paths.lengths, paths.lengths)
        at = np.arange(len(paths.tokens)) - np.repeat(paths.offsets[:-1], paths.lengths)
        first = np.repeat(paths.offsets[:-1], paths.lengths)
        turned = Paths(paths.tokens[first + lengths - 1 - at], paths.offsets)
        return Likelihood(self.model).score(target, source, turned)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return a step of the model a hop, and its start."""
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


@dataclass(frozen=True)
class _Hops:
    """The hops of the paths that start and end where they should, end to end.

    Attributes:
        good: bool [N]. row: the path of each hop. city, follows, target: ids. left: hops to the
            path's end, this one included.
    """

    good: np.ndarray
    row: np.ndarray
    city: np.ndarray
    follows: np.ndarray
    target: np.ndarray
    left: np.ndarray

    @classmethod
    def of(cls, cities: int, source: np.ndarray, target: np.ndarray, paths: Paths) -> _Hops:
        ids = np.pad(paths.padded(), ((0, 0), (0, 1)), constant_values=-1)
        source, target, hops = np.asarray(source), np.asarray(target), paths.lengths - 1
        if not len(source) == len(target) == len(ids):
            raise ValueError(f"{len(source)} queries but {len(ids)} paths")
        inside = np.arange(ids.shape[1]) <= hops[:, None]
        good = (~inside | ((ids >= 0) & (ids < cities))).all(1) & (hops >= 0)
        good &= (ids[:, 0] == source) & (ids[np.arange(len(ids)), np.maximum(hops, 0)] == target)
        row, at = np.nonzero((np.arange(ids.shape[1]) < hops[:, None]) & good[:, None])
        return cls(good, row, ids[row, at], ids[row, at + 1], target[row], hops[row] - at)

    def energies(self, terms: np.ndarray) -> np.ndarray:
        """Sum the terms of hops by path; LOST where the path is not `good`."""
        return np.where(self.good, np.bincount(self.row, terms, len(self.good)), LOST)


def _ask(call: Callable[..., Tensor], device: torch.device, *ids: np.ndarray) -> np.ndarray:
    """Call on slices of ids, for their memory; return float64."""
    slices = zip(*(torch.as_tensor(x, device=device).split(AT_ONCE) for x in ids), strict=True)
    with torch.inference_mode():
        parts = [call(*some).double().cpu().numpy() for some in slices]
    return np.concatenate([np.zeros(0), *parts])


class Inconsistency:
    """How far a path's kilometres are from what a value promises: temporal differences in km.

    Each hop a -> b differs by km(a, b) + togo(b) - togo(a), 0 on an optimal path. What is above 0
    is a detour. What is below 0 is a shortcut that no path should have, such as a hop that is no
    edge; both count alike. A path that does not lead from its source to its target has `LOST`.
    """

    def __init__(self, value: Value, graph: CityGraph) -> None:
        self.value, self.graph = value, graph

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return kilometres, float64 [N]."""
        hops = _Hops.of(len(self.graph), source, target, paths)
        device = getattr(self.value, "device", torch.device("cpu"))
        togo = _ask(self.value.togo, device, hops.city, hops.target)
        after = np.where(hops.left > 1, np.append(togo[1:], 0.0)[: len(togo)], 0.0)
        with np.errstate(invalid="ignore"):  # infinity minus infinity, where there is no path
            change = np.abs(self.graph.distance_km(hops.city, hops.follows) + after - togo)
        return hops.energies(np.where(np.isfinite(change), change, LOST))

    def flops(self, paths: Paths) -> np.ndarray:
        """Return an estimate a hop: the target needs none."""
        return np.maximum(paths.lengths - 1, 0) * float(self.value.flops_per_call)

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: great circles are no look-ups."""
        return np.zeros(len(paths))


class Doubt:
    """How unlikely a path is to be legal and in time, by a `HopsToGo`: nats.

    The sum over its hops a -> b of -log P(b within 1 hop of a), a learned test of legality, and of
    -log P(target within the hops that the path still takes from a). A path that does not lead from
    its source to its target has `LOST`.
    """

    def __init__(self, reach: HopsToGo) -> None:
        self.reach = reach

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return nats, float64 [N]."""
        hops = _Hops.of(self.reach.cities, source, target, paths)
        cities, ends = np.tile(hops.city, 2), np.append(hops.follows, hops.target)
        within = np.append(np.ones_like(hops.left), hops.left)
        doubt = -_ask(self.reach.log_within, self.reach.device, cities, ends, within)
        return np.minimum(hops.energies(doubt.reshape(2, -1).sum(0)), LOST)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return two calls a hop: is it one, and does the rest suffice?"""
        return np.maximum(paths.lengths - 1, 0) * 2.0 * self.reach.flops_per_call

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))
