"""Hops to go, learned from shortest paths: is the target within k hops, or out of reach?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import register
from studies.search.pairs import PairNetwork


@register("reach", writes=False)
class HopsToGo(PairNetwork):
    """A distribution over the hops of the shortest path: 1 to `most` (or more), or never.

    Pairs with no path are known without the map only where every hop goes east: a pair from east to
    west has none. Such pairs, each half of the training there, are a hop's city with the target of
    another path, where that lies west, and else a pair of the path backwards. In a two-way graph
    "never" is not trained. Pairs `inside` paths teach what a single hop is.

    Raises:
        ValueError: `most` below 1; see also `PairNetwork`.
    """

    def __init__(
        self, graph: CityGraph, *, most: int = 64, inside: float = 0.5, **settings: Any
    ) -> None:
        if most < 1:
            raise ValueError(f"most is at least 1 hop, not {most}")
        super().__init__(graph, most + 1, inside=inside, **settings)
        self.most, self.eastward = most, graph.orientation == "eastward"
        rank = torch.empty(len(graph), dtype=torch.int64)
        rank[torch.as_tensor(graph.order, dtype=torch.int64)] = torch.arange(len(graph))
        self.register_buffer("rank", rank, persistent=False)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of training on a hop: a pair, and one without a path."""
        return self.flops_per_call * (2 if self.eastward else 1)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats of the hops, over pairs with and without a path."""
        pairs = self.pairs(batch)
        log_p = self(pairs.city, pairs.target).float().log_softmax(-1)
        at = pairs.hops.clamp(max=self.most) - 1
        found = pairs.mean(-log_p.gather(-1, at[..., None])[..., 0])
        if not self.eastward:
            return found
        other = batch.target.roll(1)[:, None].expand_as(pairs.city)
        west = self.rank[other] < self.rank[pairs.city]
        city, target = pairs.city.where(west, pairs.target), other.where(west, pairs.city)
        never = self(city, target).float().log_softmax(-1)[..., -1]
        return (found + pairs.mean(-never)) / 2

    def distribution(self, city: Tensor, target: Tensor) -> Tensor:
        """Return probabilities [..., most + 1] of 1 to `most` hops (or more), and of never."""
        return self(city, target).float().softmax(-1)

    def log_within(self, city: Tensor, target: Tensor, hops: Tensor | int) -> Tensor:
        """Return log P(the target is at most `hops` hops away); all broadcast.

        It is 0 at the target itself, and minus infinity for fewer than 1 hop elsewhere. From `most`
        hops on it is the log-probability of any path at all.
        """
        log_p = self(city, target).float().log_softmax(-1)[..., :-1]
        upto = F.pad(log_p.logcumsumexp(-1), (1, 0), value=float("-inf"))
        at = torch.as_tensor(hops, device=log_p.device).clamp(0, self.most)
        at = at.expand(log_p.shape[:-1])[..., None]
        chance = upto.gather(-1, at)[..., 0].clamp(max=0.0)
        return chance.where((city != target).expand_as(chance), 0.0)

    def within(self, city: Tensor, target: Tensor, hops: Tensor | int) -> Tensor:
        """Return P(the target is at most `hops` hops away); see `log_within`."""
        return self.log_within(city, target, hops).exp()

    def table(self, targets: Tensor, hops: int) -> Tensor:
        """Return P(within `hops`) from every city to each of `targets` [n], [n, V]."""
        return self.over_cities(lambda city, target: self.within(city, target, hops), targets)
