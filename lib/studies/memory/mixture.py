"""A frozen model whose log-probabilities a memory changes: mixed with a store, or kept to roads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from citypaths import decoding
from citypaths.data.batches import Batch, batch_of_paths
from citypaths.decoding.decode import Moves
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel, State
from studies.memory.cache import KeyValueCache, Store, observed, states_of

THETAS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
DECODERS = {  # by method: its family, the width of the beam, and how to decode
    "greedy": ("greedy", 1, decoding.greedy),
    "beam 8": ("beam", 8, partial(decoding.beam, width=8)),
}
NEAREST = 64  # rows that are read
IMPOSSIBLE = -1e4  # log-probability of a hop without a row, of which there may be no other


class Beside(PathModel):
    """A frozen model with a memory beside it, that decodes as the model does.

    A subclass implements `changed`. Memories compose: the model may be one with a memory itself.
    """

    reads_states = False  # whether `changed` is given the model's states

    def __init__(self, model: PathModel) -> None:
        super().__init__()
        self.model, self.cities = model, model.cities
        self.settings: dict[str, Any] = {}

    @abstractmethod
    def changed(self, logits: Tensor, city: Tensor, ends: Tensor, states: Tensor | None) -> Tensor:
        """Return log-probabilities [N, V] in place of the model's logits [N, V].

        Args:
            city: ids [N], where each path is. ends: ids [N, 2], its source and target.
            states: [N, D], from which the model predicts; None unless `reads_states`.
        """

    def _watched(self, call: Callable[[], Any], steps: int) -> tuple[Any, Tensor | None]:
        return observed(self.model, call, steps) if self.reads_states else (call(), None)

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return log-probabilities [B, T, V]."""
        count = batch.cities.shape[1]
        ends = torch.stack([batch.source, batch.target], 1).repeat_interleave(count, 0)
        logits, states = self._watched(lambda: self.model(batch, loops), batch.cities.numel())
        out = self.changed(logits.flatten(0, 1), batch.cities.flatten(), ends, states)
        return out.view(logits.shape)

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> State:
        """Return the model's state and the queries."""
        return self.model.start(source, target, loops), torch.stack([source, target], 1)

    def step(self, city: Tensor, state: State) -> tuple[Tensor, State]:
        """Take the current city [B]; return log-probabilities [B, V] and the new state."""
        own, ends = state
        (logits, own), states = self._watched(lambda: self.model.step(city, own), len(city))
        return self.changed(logits, city, ends, states), (own, ends)

    def reorder(self, state: State, index: Tensor) -> State:
        """Return the state with row i taken from row index[i]."""
        own, ends = state
        return self.model.reorder(own, index), ends[index]

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the model's operations."""
        return self.model.flops_per_step(loops)

    @property
    def flops_to_start(self) -> int:
        """The model's operations to start."""
        return self.model.flops_to_start


class Cached(Beside):
    """A frozen model and a store: p = (1 - weight) p_model + weight p_store; p_model without rows.

    Args:
        store: whose keys are the model's states. theta: how sharply near keys count more.
        weight: the store's share. k: how many of the nearest rows are read.
    """

    reads_states = True

    def __init__(
        self, model: PathModel, store: Store, *, theta: float, weight: float, k: int = NEAREST
    ) -> None:
        super().__init__(model)
        if not 0 <= weight <= 1 or theta <= 0 or k < 1:
            raise ValueError(f"weight {weight} in [0, 1], theta {theta} above 0, k {k} at least 1")
        self.store, self.theta, self.weight, self.k = store, theta, weight, k

    def changed(self, logits: Tensor, city: Tensor, ends: Tensor, states: Tensor | None) -> Tensor:
        """Return the log of the mixture."""
        if not self.weight:
            return logits.float().log_softmax(-1)
        recalled = self.store.predict(states, self.cities, self.theta, self.k, ends)
        held = self.weight * recalled.sum(-1, keepdim=True)
        own = logits.float().softmax(-1)
        return ((1 - held) * own + self.weight * recalled).clamp_min(1e-30).log()

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the model's operations and those of a read."""
        return self.model.flops_per_step(loops) + self.store.flops


class Roads(Beside):
    """A frozen model restricted to stored hops: p_model over the hops out of the current city.

    Where the store has none, the model stays put, so the path does not arrive. A road is closed or
    opened by a hop of the store.

    Args:
        hops: the store: a graph of the model's cities and the hops that may be taken.
    """

    def __init__(self, model: PathModel, hops: CityGraph) -> None:
        super().__init__(model)
        if len(hops) != model.cities:
            raise ValueError(f"a store of {len(hops)} cities, a model of {model.cities}")
        self.moves = Moves.of(hops, next(model.parameters()).device)

    def changed(self, logits: Tensor, city: Tensor, ends: Tensor, states: Tensor | None) -> Tensor:
        """Return log-probabilities over the stored hops out of each city."""
        held = self.moves.mask(city, logits.float())
        stay = torch.full_like(held, float("-inf")).scatter(1, city[:, None], 0.0)
        stuck = held.isneginf().all(1, keepdim=True)
        return torch.where(stuck, stay, held).log_softmax(-1).clamp_min(IMPOSSIBLE)


def fit(
    model: PathModel,
    store: Store,
    paths: Paths,
    thetas: Sequence[float] = THETAS,
    weights: Sequence[float] = WEIGHTS,
) -> tuple[Cached, dict[tuple[float, float], float]]:
    """Return the model with a store of least loss on validation paths, and nats a hop of all tried.

    Args:
        thetas, weights: of which every pair is tried.
    """
    batch = batch_of_paths(paths, next(model.parameters()).device)
    real = batch.labels >= 0
    ends = torch.stack([batch.source, batch.target], 1)[:, None].expand(*real.shape, 2)
    with torch.inference_mode():
        states, logits = states_of(model.eval(), batch)
        label = batch.labels[real][:, None]
        own = logits[real].float().softmax(-1).gather(1, label)[:, 0]
        near, rows = store.nearest(states[real], NEAREST, ends[real])
        hit = (store.values[rows] == label).float()
        table = {}
        for theta, weight in product(thetas, weights):
            shares = (theta * near).softmax(-1).nan_to_num(0.0)
            p = (1 - weight * shares.sum(-1)) * own + weight * (shares * hit).sum(-1)
            table[theta, weight] = float(-p.clamp_min(1e-30).log().mean())
    theta, weight = min(table, key=lambda pair: table[pair])
    return Cached(model, store, theta=theta, weight=weight), table


def familiarity(
    model: PathModel, cache: KeyValueCache, paths: Paths, owners: np.ndarray | None = None
) -> np.ndarray:
    """Return how near each path's states are to the cache on average, float64 [N], at most 1.

    Args:
        owners: of `paths`, where they are in the cache themselves: a path's own rows are left out.
    """
    batch = batch_of_paths(paths, next(model.parameters()).device)
    real = batch.labels >= 0
    with torch.inference_mode():
        states = states_of(model.eval(), batch)[0][real]
        if owners is None:
            best = cache.nearest(states, 1)[0][:, 0]
        else:
            mine = torch.as_tensor(owners, device=real.device)[:, None].expand_as(real)[real]
            near, rows = cache.nearest(states, 1 + int(cache.owners.bincount().max()))
            best = near.masked_fill(cache.owners[rows] == mine[:, None], float("-inf")).amax(1)
        nearness = torch.zeros(real.shape, device=real.device)
        nearness[real] = best
    return (nearness.sum(1) / real.sum(1)).double().cpu().numpy()
