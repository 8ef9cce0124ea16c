"""What every store of rows beside a model has in common: neighbours in, probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from studies.memory.keys import Layer


class Store(ABC):
    """Rows of a key and a value, and a way to find those nearest to a state.

    Attributes:
        values: int64 [M], the city that followed. layer: whose input is the key, see `keys_of`.
    """

    values: Tensor
    layer: Layer

    @abstractmethod
    def nearest(
        self, states: Tensor, k: int, owners: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return similarities [N, k], best first, and rows [N, k] for states [N, D].

        Args:
            owners: [N]; rows of the same owner are left out (minus infinity).
        """

    @property
    @abstractmethod
    def flops(self) -> int:
        """Operations to read once."""

    def predict(
        self, states: Tensor, cities: int, theta: float, k: int, owners: Tensor | None = None
    ) -> Tensor:
        """Return probabilities [N, cities]: softmax of theta times cosine over the k nearest.

        All zeros where no row is left.
        """
        near, rows = self.nearest(states, k, owners)
        return recalled(near, self.values[rows], cities, theta)


def recalled(near: Tensor, values: Tensor, cities: int, theta: float) -> Tensor:
    """Return probabilities [N, cities] from similarities and values [N, k]; zeros without rows."""
    shares = (theta * near).softmax(-1).nan_to_num(0.0)
    return shares.new_zeros(len(shares), cities).scatter_add_(1, values, shares)


def mixed(logits: Tensor, recall: Tensor, weight: float) -> Tensor:
    """Return log of (1 - weight) p_model + weight p_recall, [..., V]; p_model where recall is 0."""
    held = weight * recall.sum(-1, keepdim=True)
    own = logits.float().softmax(-1)
    return ((1 - held) * own + weight * recall).clamp_min(1e-30).log()


def grid(
    own: Tensor, near: Tensor, hit: Tensor, thetas: Sequence[float], weights: Sequence[float]
) -> dict[tuple[float, float], float]:
    """Return nats a hop for each (theta, weight).

    Args:
        own: [N], the model's probability of the city that followed. near: [N, k], similarities.
        hit: [N, k], 1.0 where a row's value is that city.
    """
    table = {}
    for theta, weight in product(thetas, weights):
        shares = (theta * near).softmax(-1).nan_to_num(0.0)
        held, right = weight * shares.sum(-1), (shares * hit).sum(-1)
        p = (1 - held) * own + weight * right
        table[theta, weight] = float(-p.clamp_min(1e-30).log().mean())
    return table


def of_the_best(table: dict[tuple[float, float], float]) -> dict[str, float]:
    """Return theta and weight of the least loss in a table of `grid`, by name."""
    theta, weight = min(table, key=lambda pair: table[pair])
    return {"theta": theta, "weight": weight}


def owner_of_each(owners, real: Tensor) -> Tensor | None:
    """Return the owner of each real hop [hops] of paths [B, T]; None where there are none."""
    if owners is None:
        return None
    return torch.as_tensor(owners, device=real.device)[:, None].expand_as(real)[real]
