"""A store for each query: what the model itself wrote for this query before, and no other's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from citypaths.data.batches import Batch, batch_of_paths
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel, State
from studies.memory.cache import KeyValueCache
from studies.memory.keys import keys_of, states_of
from studies.memory.store import grid, mixed, of_the_best, recalled

THETAS = (5.0, 10.0, 20.0, 40.0, 80.0)
WEIGHTS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)


class Private(PathModel):
    """A frozen model, and a store of which each query sees its own rows alone.

    Args:
        model: whose states are the keys. cache: made with the same model; a row's owner is the
            query's place in `source` and `target`.
        source, target: ids [Q]; a query among them twice reads the rows of its first place.
        theta, weight: as in `Cached`; all rows of the query are compared.
    """

    def __init__(
        self, model: PathModel, cache: KeyValueCache, source, target, *, theta: float, weight: float
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1 or theta <= 0:
            raise ValueError(f"weight {weight} in [0, 1], theta {theta} above 0")
        self.model, self.cities, self.layer = model, model.cities, cache.layer
        self.theta, self.weight = theta, weight
        self.settings: dict[str, Any] = {}
        self._lay_out(cache, len(source))
        where = cache.keys.device
        ids = (torch.as_tensor(np.asarray(x, np.int64), device=where) for x in (source, target))
        self.asked, self.place = self._pair(*ids).sort(stable=True)

    def _lay_out(self, cache: KeyValueCache, queries: int) -> None:
        """Put the rows side by side: keys [Q, M, D], values and which are held [Q, M]."""
        order = cache.owners.argsort(stable=True)
        owner, count = cache.owners[order], cache.owners.bincount(minlength=queries)
        place = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[owner]
        shape = (queries, max(1, int(count.max())))
        self.keys = cache.keys.new_zeros(*shape, cache.keys.shape[1])
        self.values = cache.values.new_zeros(shape)
        self.held = torch.zeros_like(self.values, dtype=torch.bool)
        self.keys[owner, place], self.values[owner, place] = cache.keys[order], cache.values[order]
        self.held[owner, place] = True

    def _pair(self, source: Tensor, target: Tensor) -> Tensor:
        return source * self.cities + target

    def query_of(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the place of each query [N] given by its ends; -1 where it has no store."""
        pair = self._pair(source, target)
        at = torch.searchsorted(self.asked, pair).clamp_max(len(self.asked) - 1)
        return torch.where(self.asked[at] == pair, self.place[at], -1)

    def near(self, states: Tensor, query: Tensor) -> Tensor:
        """Return similarities [N, M] of states [N, D] to the rows of their queries [N]."""
        states = F.normalize(states.float(), dim=-1)
        near = torch.bmm(self.keys[query], states[..., None])[..., 0]
        seen = self.held[query] & (query >= 0)[:, None]
        return near.masked_fill(~seen, float("-inf"))

    def _mixed(self, logits: Tensor, states: Tensor, query: Tensor) -> Tensor:
        near = self.near(states, query)
        recall = recalled(near, self.values[query], self.cities, self.theta)
        return mixed(logits, recall, self.weight)

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return log-probabilities [B, T, V]."""
        states, logits = states_of(self.model, batch, self.layer)
        query = self.query_of(batch.source, batch.target)[:, None].expand_as(batch.cities)
        out = self._mixed(logits.flatten(0, 1), states.flatten(0, 1), query.flatten())
        return out.view(logits.shape)

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> State:
        """See `PathModel.start`."""
        query = self.query_of(source, target)
        return {"own": self.model.start(source, target, loops), "query": query}

    def step(self, city: Tensor, state: State) -> tuple[Tensor, State]:
        """See `PathModel.step`."""
        with keys_of(self.model, self.layer) as given:
            logits, own = self.model.step(city, state["own"])
        return self._mixed(logits, given(len(city)), state["query"]), state | {"own": own}

    def reorder(self, state: State, index: Tensor) -> State:
        """See `PathModel.reorder`."""
        return {"own": self.model.reorder(state["own"], index), "query": state["query"][index]}

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the model's operations and those of one similarity a row of the mean query."""
        rows = int(self.held.sum()) / max(1, len(self.held))
        return self.model.flops_per_step(loops) + round(2 * rows * self.keys.shape[-1])

    @property
    def flops_to_start(self) -> int:
        """Return the model's."""
        return self.model.flops_to_start


def fit_private(
    model: PathModel,
    cache: KeyValueCache,
    source,
    target,
    paths: Paths,
    thetas: Sequence[float] = THETAS,
    weights: Sequence[float] = WEIGHTS,
) -> dict[str, float]:
    """Return theta and weight of least loss on validation paths [Q], each with a store of its own.

    Args:
        cache, source, target: as in `Private`.
    """
    private = Private(model, cache, source, target, theta=1.0, weight=1.0)
    batch = batch_of_paths(paths, cache.keys.device)
    real = batch.labels >= 0
    with torch.inference_mode():
        states, logits = states_of(model.eval(), batch, cache.layer)
        labels = batch.labels[real][:, None]
        own = logits[real].float().softmax(-1).gather(1, labels)[:, 0]
        query = private.query_of(batch.source, batch.target)[:, None].expand_as(real)[real]
        near = private.near(states[real], query)
        hit = (private.values[query] == labels).float()
        return of_the_best(grid(own, near, hit, thetas, weights))
