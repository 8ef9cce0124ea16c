"""A key-value cache over a frozen model's states: what came next where the model was like this.

No weight is trained. A key is the state from which the model's head predicts, a value the city that
followed (Grave et al. 2017; Orhan 2018; Khandelwal et al. 2020). A shortest path never comes back
to a city, so the store must hold other paths than the one being written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.batches import Batch, batch_of_paths
from citypaths.memories.nearest import nearest
from citypaths.models.base import PathModel, State
from citypaths.paths import Paths

AT_ONCE = 2**14  # cities in one forward pass


@contextmanager
def captured(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a layer is given, call by call."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def states_of(model: PathModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what the head of a model is given, [B, T, D], and the logits [B, T, V].

    Raises:
        ValueError: the model has no `head` that is called once.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(model).__name__} has no head whose input could be a key")
    with captured(head) as seen:
        logits = model(batch)
    if len(seen) != 1 or seen[0].shape[:2] != batch.cities.shape:
        raise ValueError(f"{type(model).__name__} does not call its head once for all steps")
    return seen[0], logits


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """Rows of a store; edit it by `rows` and `joined`, which copy.

    Attributes:
        keys: float [M, D], of unit length. values: int64 [M], the city that followed.
        origins: int64 [M], the city that the hop starts from. owners: int64 [M], the path of each.
    """

    keys: Tensor
    values: Tensor
    origins: Tensor
    owners: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, model: PathModel, paths: Paths, owners: np.ndarray | None = None) -> KeyValueCache:
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
                keys = F.normalize(states_of(model, batch)[0][real].float(), dim=-1)
                parts.append((keys, batch.labels[real], batch.cities[real], owner[real]))
        if not parts:
            raise ValueError("a cache holds at least one path")
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def rows(self, keep: Tensor) -> KeyValueCache:
        """Return the cache with some of its rows: positions or a boolean mask."""
        return KeyValueCache(*(x[keep] for x in self._columns()))

    def without_hops(self, origins: Tensor, values: Tensor, cities: int) -> KeyValueCache:
        """Return the cache without the hops (origin, value): roads that were closed."""
        closed = origins * cities + values
        return self.rows(~torch.isin(self.origins * cities + self.values, closed))

    def joined(self, other: KeyValueCache) -> KeyValueCache:
        """Return both caches as one; owners are kept as they are."""
        pairs = zip(self._columns(), other._columns(), strict=True)
        return KeyValueCache(*(torch.cat(pair) for pair in pairs))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.origins, self.owners

    def nearest(
        self, states: Tensor, k: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return similarities [N, k] and rows [N, k] of the nearest keys, exactly, best first.

        Args:
            states: [N, D]. owners: [N]; rows of the same owner are left out (minus infinity).
        """
        unit = F.normalize(states.float(), dim=-1)
        return nearest(self.keys, unit, min(k, len(self)), self.owners, owners)

    def predict(
        self, states: Tensor, cities: int, theta: float, k: int, owners: Tensor | None = None
    ) -> Tensor:
        """Return probabilities [N, cities]: softmax of theta times cosine over the k nearest.

        All zeros where no row is left.
        """
        near, rows = self.nearest(states, k, owners)
        weight = (theta * near).softmax(-1).nan_to_num(0.0)
        out = weight.new_zeros(len(states), cities)
        return out.scatter_add_(1, self.values[rows], weight)


class Cached(PathModel):
    """A frozen model and a cache: p = (1 - weight) p_model + weight p_cache.

    Args:
        model: whose head's input is the key. cache: made with the same model.
        theta, weight, k: sharpness, share of the cache, neighbours; see `fit`.
    """

    def __init__(
        self, model: PathModel, cache: KeyValueCache, *, theta: float, weight: float, k: int = 64
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1 or theta <= 0 or k < 1:
            raise ValueError(f"weight {weight} in [0, 1], theta {theta} above 0, k {k} at least 1")
        self.model, self.cache, self.cities = model, cache, model.cities
        self.theta, self.weight, self.k = theta, weight, k
        self.settings: dict[str, Any] = {}

    def _mixed(self, logits: Tensor, states: Tensor) -> Tensor:
        own = logits.float().log_softmax(-1)
        if not self.weight:
            return own
        flat = states.flatten(0, -2)
        recalled = self.cache.predict(flat, self.cities, self.theta, self.k)
        recalled = recalled.view_as(own)
        held = self.weight * recalled.sum(-1, keepdim=True)
        return ((1 - held) * own.exp() + self.weight * recalled).clamp_min(1e-30).log()

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return log-probabilities [B, T, V]."""
        states, logits = states_of(self.model, batch)
        return self._mixed(logits, states)

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> State:
        """See `PathModel.start`."""
        return self.model.start(source, target, loops)

    def step(self, city: Tensor, state: State) -> tuple[Tensor, State]:
        """See `PathModel.step`."""
        with captured(self.model.head) as seen:
            logits, state = self.model.step(city, state)
        return self._mixed(logits, seen[0]), state

    def reorder(self, state: State, index: Tensor) -> State:
        """See `PathModel.reorder`."""
        return self.model.reorder(state, index)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the model's operations and those of one similarity a row."""
        return self.model.flops_per_step(loops) + 2 * self.cache.keys.numel()

    @property
    def flops_to_start(self) -> int:
        """Return the model's."""
        return self.model.flops_to_start


def fit(
    model: PathModel,
    cache: KeyValueCache,
    paths: Paths,
    thetas: Sequence[float] = (5.0, 10.0, 20.0, 40.0, 80.0),
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
    real, table = batch.labels >= 0, {}
    with torch.inference_mode():
        states, logits = states_of(model.eval(), batch)
        asked = None
        if owners is not None:
            each = torch.as_tensor(np.asarray(owners), device=real.device)[:, None]
            asked = each.expand_as(real)[real]
        labels, own = batch.labels[real], logits[real].float().softmax(-1)
        own = own.gather(1, labels[:, None])[:, 0]
        near, rows = cache.nearest(states[real], k, asked)
        hit = (cache.values[rows] == labels[:, None]).float()
        for theta, weight in product(thetas, weights):
            shares = (theta * near).softmax(-1).nan_to_num(0.0)
            held, recalled = weight * shares.sum(-1), (shares * hit).sum(-1)
            p = (1 - held) * own + weight * recalled
            table[theta, weight] = float(-p.clamp_min(1e-30).log().mean())
    theta, weight = min(table, key=lambda pair: table[pair])
    return Cached(model, cache, theta=theta, weight=weight, k=k), table


def familiarity(model: PathModel, cache: KeyValueCache, paths: Paths) -> np.ndarray:
    """Return how near each path's states are to the store on average, float64 [N], at most 1."""
    batch = batch_of_paths(paths, next(model.parameters()).device)
    real = batch.labels >= 0
    with torch.inference_mode():
        states, _ = states_of(model.eval(), batch)
        near = torch.zeros(real.shape, device=real.device)
        near[real] = cache.nearest(states[real], 1)[0][:, 0]
    return (near.sum(1) / real.sum(1)).double().cpu().numpy()
