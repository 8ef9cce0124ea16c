"""A key-value cache over a frozen model's states: what came next where the model was like this.

No weight is trained. A key is a state of the model, by default that from which its head predicts;
a value is the city that followed (Grave et al. 2017; Orhan 2018; Khandelwal et al. 2020). A
shortest path never comes back to a city, so the store must hold other paths than the one being
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from citypaths.data.batches import Batch, batch_of_paths
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel, State
from studies.memory.keys import Layer, keys_of, states_of
from studies.memory.nearest import nearest
from studies.memory.store import Store, grid, mixed, of_the_best, owner_of_each

AT_ONCE = 2**14  # cities in one forward pass


@dataclass(frozen=True, eq=False)
class KeyValueCache(Store):
    """Rows of a store; edit it by `rows` and `joined`, which copy.

    Attributes:
        keys: float [M, D], of unit length. values: int64 [M], the city that followed.
        origins: int64 [M], the city that the hop starts from. owners: int64 [M], the path of each.
        layer: of the model, whose input is the key; see `keys.keys_of`.
    """

    keys: Tensor
    values: Tensor
    origins: Tensor
    owners: Tensor
    layer: Layer = "head"

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(
        cls,
        model: PathModel,
        paths: Paths,
        owners: np.ndarray | None = None,
        layer: Layer = "head",
    ) -> KeyValueCache:
        """Store a row for every hop of paths (at least two cities each); `owners` name them."""
        owners = np.arange(len(paths)) if owners is None else np.asarray(owners)
        where, parts = next(model.parameters()).device, []
        order = np.argsort(paths.lengths, kind="stable")
        slices = np.array_split(order, max(1, -(-int(paths.lengths.sum()) // AT_ONCE)))
        model.eval()
        with torch.inference_mode():
            for some in (s for s in slices if len(s)):
                batch = batch_of_paths(paths.take(some), where)
                real = batch.labels >= 0
                owner = torch.as_tensor(owners[some], device=where)[:, None].expand_as(real)
                keys = F.normalize(states_of(model, batch, layer)[0][real].float(), dim=-1)
                parts.append((keys, batch.labels[real], batch.cities[real], owner[real]))
        if not parts:
            raise ValueError("a cache holds at least one path")
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)), layer)

    def rows(self, keep: Tensor) -> KeyValueCache:
        """Return the cache with some of its rows: positions or a boolean mask."""
        return KeyValueCache(*(x[keep] for x in self._columns()), self.layer)

    def without_hops(self, origins: Tensor, values: Tensor, cities: int) -> KeyValueCache:
        """Return the cache without the hops (origin, value): roads that were closed."""
        closed = origins * cities + values
        return self.rows(~torch.isin(self.origins * cities + self.values, closed))

    def joined(self, other: KeyValueCache) -> KeyValueCache:
        """Return both caches as one; owners are kept as they are."""
        if other.layer != self.layer:
            raise ValueError(f"keys of layer {self.layer} and of {other.layer} do not compare")
        pairs = zip(self._columns(), other._columns(), strict=True)
        return KeyValueCache(*(torch.cat(pair) for pair in pairs), self.layer)

    @property
    def flops(self) -> int:
        """Operations to read once: a similarity a row."""
        return 2 * self.keys.numel()

    def _columns(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.origins, self.owners

    def nearest(
        self, states: Tensor, k: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `Store.nearest`: exact, by the cosine."""
        return self.compare(F.normalize(states.float(), dim=-1), k, owners)

    def compare(
        self, states: Tensor, k: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return `nearest` by the inner product with states [N, D] as they are."""
        return nearest(self.keys, states, min(k, len(self)), self.owners, owners)


class Cached(PathModel):
    """A frozen model and a cache: p = (1 - weight) p_model + weight p_cache.

    Args:
        model: whose states are the keys. cache: made with the same model.
        theta, weight, k: sharpness, share of the cache, neighbours; see `fit`.
    """

    def __init__(
        self, model: PathModel, cache: Store, *, theta: float, weight: float, k: int = 64
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1 or theta <= 0 or k < 1:
            raise ValueError(f"weight {weight} in [0, 1], theta {theta} above 0, k {k} at least 1")
        self.model, self.cache, self.cities = model, cache, model.cities
        self.theta, self.weight, self.k = theta, weight, k
        self.settings: dict[str, Any] = {}

    def _mixed(self, logits: Tensor, states: Tensor) -> Tensor:
        if not self.weight:
            return logits.float().log_softmax(-1)
        recall = self.cache.predict(states.flatten(0, -2), self.cities, self.theta, self.k)
        return mixed(logits, recall.view(logits.shape), self.weight)

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return log-probabilities [B, T, V]."""
        states, logits = states_of(self.model, batch, self.cache.layer)
        return self._mixed(logits, states)

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> State:
        """See `PathModel.start`."""
        return self.model.start(source, target, loops)

    def step(self, city: Tensor, state: State) -> tuple[Tensor, State]:
        """See `PathModel.step`."""
        with keys_of(self.model, self.cache.layer) as given:
            logits, state = self.model.step(city, state)
        return self._mixed(logits, given(len(city))), state

    def reorder(self, state: State, index: Tensor) -> State:
        """See `PathModel.reorder`."""
        return self.model.reorder(state, index)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the model's operations and those of one similarity a row."""
        return self.model.flops_per_step(loops) + self.cache.flops

    @property
    def flops_to_start(self) -> int:
        """Return the model's."""
        return self.model.flops_to_start


def fit(
    model: PathModel,
    cache: Store,
    paths: Paths,
    thetas: Sequence[float] = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0),
    weights: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    k: int = 64,
    owners: np.ndarray | None = None,
) -> tuple[Cached, dict[tuple[float, float], float]]:
    """Return the cached model of least loss on validation paths, and nats a hop of all tried.

    Args:
        owners: of `paths`, where they are in the cache themselves: each is then left out of what
            it is asked (leave-one-out).
    """
    batch = batch_of_paths(paths, next(model.parameters()).device)
    real = batch.labels >= 0
    with torch.inference_mode():
        states, logits = states_of(model.eval(), batch, cache.layer)
        labels, own = batch.labels[real], logits[real].float().softmax(-1)
        own = own.gather(1, labels[:, None])[:, 0]
        near, rows = cache.nearest(states[real], k, owner_of_each(owners, real))
        hit = (cache.values[rows] == labels[:, None]).float()
    table = grid(own, near, hit, thetas, weights)
    return Cached(model, cache, **of_the_best(table), k=k), table


def familiarity(
    model: PathModel, cache: Store, paths: Paths, owners: np.ndarray | None = None
) -> np.ndarray:
    """Return how near each path's states are to the store on average, float64 [N], at most 1.

    Args:
        owners: of `paths`, where they are in the store themselves; see `fit`.
    """
    batch = batch_of_paths(paths, next(model.parameters()).device)
    real = batch.labels >= 0
    with torch.inference_mode():
        states, _ = states_of(model.eval(), batch, cache.layer)
        near = torch.zeros(real.shape, device=real.device)
        near[real] = cache.nearest(states[real], 1, owner_of_each(owners, real))[0][:, 0]
    return (near.sum(1) / real.sum(1)).double().cpu().numpy()
