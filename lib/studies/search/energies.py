"""Energies of whole paths from learned networks: no hop is looked up."""

from __future__ import annotations

from collections.abc import Callable
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
        ends = np.repeat(paths.offsets[:-1] + paths.offsets[1:] - 1, paths.lengths)
        turned = Paths(paths.tokens[ends - np.arange(len(ends))], paths.offsets)
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


def _ask(call: Callable[..., Tensor], device: torch.device, *ids: np.ndarray) -> np.ndarray:
    """Call on slices of ids, for their memory; return float64."""
    slices = zip(*(torch.as_tensor(x, device=device).split(AT_ONCE) for x in ids), strict=True)
    with torch.inference_mode():
        parts = [call(*some).double().cpu().numpy() for some in slices]
    return np.concatenate([np.zeros(0), *parts])


def _sums(good: np.ndarray, row: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Sums of the terms of hops by path, [N]; `row` counts the `good` ones, the others are LOST."""
    out = np.full(len(good), LOST)
    out[good] = np.bincount(row, terms, int(good.sum()))
    return out


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
        good = paths.leads(source, target)
        row, a, b = paths.take(good).hops()
        last = np.append(np.diff(row) > 0, True)[: len(row)]
        device = getattr(self.value, "device", torch.device("cpu"))
        togo = _ask(self.value.togo, device, a, np.asarray(target, np.int64)[good][row])
        after = np.where(last, 0.0, np.roll(togo, -1))
        with np.errstate(invalid="ignore"):  # infinity minus infinity, where there is no path
            change = np.abs(self.graph.distance_km(a, b) + after - togo)
        return _sums(good, row, np.where(np.isfinite(change), change, LOST))

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
        good = paths.leads(source, target)
        row, a, b = paths.take(good).hops()
        hops = paths.lengths[good] - 1
        left = np.repeat(np.cumsum(hops), hops) - np.arange(len(row))
        ends = np.append(b, np.asarray(target, np.int64)[good][row])
        within = np.append(np.ones_like(left), left)
        doubt = -_ask(self.reach.log_within, self.reach.device, np.tile(a, 2), ends, within)
        return np.minimum(_sums(good, row, doubt.reshape(2, -1).sum(0)), LOST)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return two calls a hop: is it one, and does the rest suffice?"""
        return np.maximum(paths.lengths - 1, 0) * 2.0 * self.reach.flops_per_call

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))
