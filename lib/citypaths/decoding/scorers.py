"""Scorers: energies of whole paths, or kilometres still to go from a city."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from citypaths.data.batches import Batch, batch_of_paths
from citypaths.decoding.decode import evaluating
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel, nats

AT_ONCE = 2**14  # cities of paths in one forward pass
LOST = 1e9  # energy of what is no path from the source to the target


class Scorer(Protocol):
    """Energies of whole paths: lower is better."""

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return energies, float64 [N], of `paths` (one each) for queries given as ids [N]."""

    def flops(self, paths: Paths) -> np.ndarray:
        """Return the floating-point operations of scoring each path, float64 [N]."""

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return the look-ups of scoring each path, float64 [N]: 0 for what is learned."""


class Value(Protocol):
    """Kilometres still to go."""

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """Return kilometres from each city [N] to its target [N]; float [N], 0 at the target."""

    @property
    def flops_per_call(self) -> int:
        """Return the floating-point operations of one estimate."""


class PathLength:
    """The exact verifier: kilometres of a legal path that arrives, else infinity.

    Each hop of a path is a look-up: is it an edge, how long is it?
    """

    def __init__(self, graph: CityGraph) -> None:
        self.graph = graph

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`."""
        ids, lengths = paths.padded(), paths.lengths
        ids = np.pad(ids, ((0, 0), (0, max(0, 2 - ids.shape[1]))), constant_values=-1)
        inside = np.arange(ids.shape[1] - 1) < lengths[:, None] - 1
        at = self.graph.edge_index(ids[:, :-1], ids[:, 1:])
        mm = np.where(inside, self.graph.mm[np.maximum(at, 0)] if len(self.graph.mm) else 0.0, 0.0)
        last = ids[np.arange(len(ids)), np.maximum(lengths - 1, 0)]
        good = (np.where(inside, at, 0) >= 0).all(1) & (lengths > 0)
        good &= (ids[:, 0] == source) & (last == target)
        return np.where(good, mm.sum(1) / 1e6, np.inf)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is learned."""
        return np.zeros(len(paths))

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return the hops of each path."""
        return np.maximum(paths.lengths - 1, 0).astype(float)


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
        with evaluating(self.model) as where:
            for some in np.array_split(rows, -(-int(paths.lengths[rows].sum()) // AT_ONCE) or 1):
                if len(some):
                    batch = batch_of_paths(paths.take(some), where)
                    ids = (
                        torch.as_tensor(np.asarray(x)[some], device=where) for x in (source, target)
                    )
                    batch = Batch(*ids, batch.cities, batch.labels)
                    each = nats(self.model(batch), batch, "none").view_as(batch.labels)
                    out[some, : each.shape[1]] = each.double().cpu().numpy()
        return out

    def flops(self, paths: Paths) -> np.ndarray:
        """Return a step of the model a hop, and its start."""
        hops = np.maximum(paths.lengths - 1, 0)
        return hops * float(self.model.flops_per_step()) + (hops > 0) * self.model.flops_to_start

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))


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
