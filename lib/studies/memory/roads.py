"""Roads: a model that may only take hops that are rows of a store, which can be edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph, padded_neighbours
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel, State

NEVER = -1e4  # log-probability of a hop without a row, of which there may be no other


@dataclass(frozen=True, eq=False)
class Hops:
    """A store with a row for every distinct hop, ordered; editing copies.

    Attributes:
        rows: int64 [H, 2], (from, to). cities: how many there are.
    """

    rows: np.ndarray
    cities: int

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, paths: Sequence[Paths], cities: int) -> Hops:
        """Store every hop that some path takes."""
        keys = []
        for part in paths:
            _, a, b = part.hops()
            keys.append(np.unique(a * cities + b))
        return cls._from(np.concatenate([np.zeros(0, np.int64), *keys]), cities)

    @classmethod
    def _from(cls, keys: np.ndarray, cities: int) -> Hops:
        return cls(np.stack(np.divmod(np.unique(keys), cities), 1), cities)

    @property
    def _keys(self) -> np.ndarray:
        return self.rows[:, 0] * self.cities + self.rows[:, 1]

    def without(self, hops: np.ndarray) -> Hops:
        """Return the store without hops [m, 2]; those it does not hold change nothing."""
        gone = np.asarray(hops, np.int64).reshape(-1, 2) @ (self.cities, 1)
        return self._from(np.setdiff1d(self._keys, gone), self.cities)

    def joined(self, hops: np.ndarray) -> Hops:
        """Return the store with rows for hops [m, 2] too."""
        hops = np.asarray(hops, np.int64).reshape(-1, 2)
        if len(hops) and not ((hops >= 0) & (hops < self.cities)).all():
            raise ValueError(f"a hop joins ids from 0 to {self.cities - 1}")
        return self._from(np.concatenate([self._keys, hops @ (self.cities, 1)]), self.cities)

    def on(self, graph: CityGraph) -> CityGraph:
        """Return the graph of those of its edges that are held: a map to search."""
        held = np.isin(
            graph.edge_sources.astype(np.int64) * self.cities + graph.indices, self._keys
        )
        return graph.with_edges(held)

    @cached_property
    def table(self) -> np.ndarray:
        """Ids one stored hop away from each city, [V, most], padded with V."""
        count = np.bincount(self.rows[:, 0], minlength=self.cities)
        return padded_neighbours(count, self.rows[:, 1])


class Roads(PathModel):
    """A frozen model restricted to stored hops: p_model over the rows of the current city.

    Where the store has no hop out of a city, the model stays put, so the path does not arrive. No
    weight is trained; a road is closed or opened by a row.

    Args:
        model: of paths, frozen. hops: the store.
    """

    def __init__(self, model: PathModel, hops: Hops) -> None:
        super().__init__()
        if hops.cities != model.cities:
            raise ValueError(f"a store of {hops.cities} cities, a model of {model.cities}")
        self.model, self.hops, self.cities = model, hops, model.cities
        where = next(model.parameters()).device
        self.table = torch.as_tensor(hops.table, device=where)
        self.settings: dict[str, Any] = {}

    def _restricted(self, logits: Tensor, city: Tensor) -> Tensor:
        """Log-probabilities [N, V] over the stored hops out of city [N]."""
        allowed = torch.zeros(len(city), self.cities + 1, dtype=torch.bool, device=city.device)
        allowed = allowed.scatter(1, self.table[city], True)[:, :-1]
        stay = torch.zeros_like(allowed).scatter(1, city[:, None], True)
        allowed = torch.where(allowed.any(1, keepdim=True), allowed, stay)
        held = logits.float().masked_fill(~allowed, float("-inf")).log_softmax(-1)
        return held.clamp_min(NEVER)

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return log-probabilities [B, T, V]."""
        logits = self.model(batch, loops)
        return self._restricted(logits.flatten(0, 1), batch.cities.flatten()).view(logits.shape)

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> State:
        """See `PathModel.start`."""
        return self.model.start(source, target, loops)

    def step(self, city: Tensor, state: State) -> tuple[Tensor, State]:
        """See `PathModel.step`."""
        logits, state = self.model.step(city, state)
        return self._restricted(logits, city), state

    def reorder(self, state: State, index: Tensor) -> State:
        """See `PathModel.reorder`."""
        return self.model.reorder(state, index)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the model's: a row is read, not computed."""
        return self.model.flops_per_step(loops)

    @property
    def flops_to_start(self) -> int:
        """Return the model's."""
        return self.model.flops_to_start
