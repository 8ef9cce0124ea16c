"""Networks on (city, target) pairs, learned from shortest paths: kilometres and hops to go.

hidden = relu(A[city] + B[target] + C(relative position)): the first layer costs a sum of two table
rows, so that all cities at once, for one target, are little more than the layers behind it.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import EARTH_RADIUS_KM
from citypaths.models.base import Network, register

HARMONICS = 4
RELATIVE = 2 * HARMONICS + 2
AT_ONCE = 2**15  # pairs whose hidden states are in memory together
BINS, FINEST, LONGEST = 48, 1e-2, 4.0  # supports of the excess of a way, from 0 to LONGEST
MOST_HOPS = 64


@dataclass(frozen=True)
class Pairs:
    """Pairs of cities on shortest paths, all [B, T].

    Attributes:
        city, target: int64 ids. km: float32, length of the path between. hops: int64.
        real: bool, False on padding.
    """

    city: Tensor
    target: Tensor
    km: Tensor
    hops: Tensor
    real: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of values [B, T] over real pairs."""
        return (values * self.real).sum() / self.real.sum()


class PairNetwork(Network):
    """A network on (city, target) pairs: subclasses give its outputs a meaning and a loss.

    Args:
        graph: decides the cities and their coordinates, no edges. outputs: of the head.
        width: of the first, factored layer; half of it is that of the second.

    Raises:
        ValueError: edge lengths are not great-circle km (a jittered or rounded graph).
    """

    inside = 0.0  # share of training pairs that end at a later city of the path, not its last

    def __init__(self, graph: CityGraph, outputs: int, width: int) -> None:
        super().__init__()
        off = np.abs(graph.km - graph.distance_km(graph.edge_sources, graph.indices))
        if off.max(initial=0.0) > 1e-3:
            raise ValueError(
                f"{graph} has an edge {off.max():.3g} km off the great circle: pairs learn lengths "
                "from coordinates, so the graph must be neither jittered nor rounded"
            )
        self.cities = len(graph)
        self.city, self.goal = (nn.Embedding(len(graph), width) for _ in range(2))
        for table in (self.city, self.goal):  # small: what the position says is learned first
            nn.init.normal_(table.weight, std=0.03)
        self.relative = nn.Linear(RELATIVE, width)
        self.inner = nn.Linear(width, width // 2)
        self.head = nn.Linear(width // 2, outputs)
        self.spread_km = 2 * EARTH_RADIUS_KM * max(float(graph.sphere.std(0).max()), 1e-6)
        self.register_buffer("points", torch.as_tensor(graph.sphere), persistent=False)
        self.register_buffer("frame", _frames(graph), persistent=False)

    @property
    def flops_per_call(self) -> int:
        """Return the floating-point operations of one pair."""
        linear = (self.relative, self.inner, self.head)
        return sum(2 * layer.in_features * layer.out_features for layer in linear)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of one pair: training takes one a hop."""
        return self.flops_per_call

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.head.weight.device

    def straight_km(self, city: Tensor, target: Tensor) -> Tensor:
        """Return great-circle km between cities, float32; shapes broadcast."""
        return self._chord(city, target)[1]

    def forward(self, city: Tensor, target: Tensor) -> Tensor:
        """Return outputs [..., outputs] for ids that broadcast."""
        hidden = self.city(city) + self.goal(target) + self.relative(self._position(city, target))
        return self.head(F.relu(self.inner(F.relu(hidden))))

    def _chord(self, city: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors from city to target [..., 3], and km: float64 inside, for the nearest pairs."""
        chord = self.points[target] - self.points[city]
        half = (chord.norm(dim=-1) / 2).clamp(max=1.0)
        return chord.float(), (2 * EARTH_RADIUS_KM * torch.asin(half)).float()

    def _position(self, city: Tensor, target: Tensor) -> Tensor:
        """Where the target lies as seen from the city: distance and direction [..., RELATIVE]."""
        chord, km = self._chord(city, target)
        east, north = (self.frame[city] * chord[..., None, :]).sum(-1).unbind(-1)
        turns = torch.arange(1, HARMONICS + 1, device=chord.device)
        angle = torch.atan2(north, east)[..., None] * turns
        distance = torch.stack([torch.log1p(km) - 4, km / self.spread_km - 1], -1)
        return torch.cat([angle.cos(), angle.sin(), distance], -1)

    def pairs(self, batch: Batch) -> Pairs:
        """Return a pair for every hop: its city, and the target or a random city further on."""
        real = batch.labels >= 0
        steps = torch.arange(batch.labels.shape[1], device=real.device).expand_as(real)
        hop_km = self.straight_km(batch.cities, batch.labels.clamp_min(0)) * real
        km = F.pad(hop_km.cumsum(1), (1, 0))
        hops = real.sum(1, keepdim=True) - steps
        if self.training and self.inside:
            shorter, cut = torch.rand(2, *real.shape, device=real.device)
            some = 1 + (cut * hops).long().minimum(hops - 1)
            hops = torch.where(shorter < self.inside, some, hops)
        hops = torch.where(real, hops, 1)
        end = (steps + hops).clamp(max=batch.labels.shape[1])
        target = batch.labels.gather(1, end - 1).clamp_min(0)
        return Pairs(batch.cities, target, km.gather(1, end) - km[:, :-1], hops, real)


def _frames(graph: CityGraph) -> Tensor:
    """Unit vectors to the east and the north of each city, float32 [V, 2, 3]."""
    lat, lon = np.radians(graph.lat), np.radians(graph.lon)
    east = [-np.sin(lon), np.cos(lon), np.zeros_like(lon)]
    north = [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)]
    frames = np.stack([np.stack(east, -1), np.stack(north, -1)], 1)
    return torch.as_tensor(frames, dtype=torch.float32)


def between(support: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the support at or above each x, int64 [...], and x's share of the way to it."""
    above = torch.searchsorted(support, x).clamp(1, len(support) - 1)
    low, high = support[above - 1], support[above]
    return above, (x - low) / (high - low)


@register("value", writes=False)
class CostToGo(PairNetwork):
    """Kilometres from a city to a target, as a distribution over the excess of the way.

    The excess is network km / great-circle km - 1, at least 0. The distribution is categorical over
    `BINS` supports, from 0 to `LONGEST`, apart by about `FINEST` at first and geometrically further
    on; a label is shared by its two neighbours so that its mean is exact (Bellemare et al. 2017;
    Schrittwieser et al. 2020). As a value it gives a `quantile` of it, or its mean for None.
    """

    quantile: float | None = None

    def __init__(self, graph: CityGraph, *, width: int = 128) -> None:
        super().__init__(graph, BINS, width)
        steps = torch.linspace(0, math.log1p(LONGEST / FINEST), BINS, dtype=torch.float64)
        self.register_buffer("support", (FINEST * torch.expm1(steps)).float(), persistent=False)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats of the excess of one pair a hop."""
        pairs = self.pairs(batch)
        straight = self.straight_km(pairs.city, pairs.target).clamp_min(1e-6)
        excess = (pairs.km / straight - 1).clamp(0, float(self.support[-1]))
        above, share = between(self.support, excess)
        log_p = self(pairs.city, pairs.target).float().log_softmax(-1)
        near = log_p.gather(-1, torch.stack([above - 1, above], -1))
        return pairs.mean(-torch.lerp(near[..., 0], near[..., 1], share))

    def excess(self, city: Tensor, target: Tensor) -> Tensor:
        """Return the mean excess, or a quantile of it, interpolated between supports."""
        p = self(city, target).float().softmax(-1)
        if self.quantile is None:
            return (p * self.support).sum(-1)
        middle = p.cumsum(-1) - p / 2
        at = (middle < self.quantile).sum(-1).clamp(1, len(self.support) - 1)
        low, high = (middle.gather(-1, (at + i)[..., None])[..., 0] for i in (-1, 0))
        share = ((self.quantile - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
        return torch.lerp(self.support[at - 1], self.support[at], share)

    def at(self, quantile: float | None) -> CostToGo:
        """Return the network, weights shared, with another quantile: between 0 and 1, or None."""
        other = copy(self)
        other.quantile = quantile
        return other

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """Return km to go, at least the great circle and 0 at the target; shapes broadcast."""
        return self.straight_km(city, target) * (1 + self.excess(city, target))

    @torch.no_grad()
    def table(self, targets: np.ndarray) -> np.ndarray:
        """Return km to go from every city to each of `targets` [n], float32 [n, V]."""
        cities = torch.arange(self.cities, device=self.device)
        rows = torch.as_tensor(targets, device=self.device).split(max(1, AT_ONCE // self.cities))
        return torch.cat([self.togo(cities, some[:, None]) for some in rows]).cpu().numpy()


@register("reach", writes=False)
class HopsToGo(PairNetwork):
    """A distribution over the hops of the shortest path: 1 to `MOST_HOPS` (or more), or never.

    Pairs with no path are known without the map only where every hop goes east: a pair from east to
    west has none. Such pairs, each half of the training there, are a hop's city with the target of
    another path, where that lies west, and else a pair of the path backwards. In a two-way graph
    "never" is not trained.
    """

    inside = 0.5  # such pairs teach what a single hop is

    def __init__(self, graph: CityGraph, *, width: int = 128) -> None:
        super().__init__(graph, MOST_HOPS + 1, width)
        self.eastward = graph.orientation == "eastward"
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
        at = pairs.hops.clamp(max=MOST_HOPS) - 1
        found = pairs.mean(-log_p.gather(-1, at[..., None])[..., 0])
        if not self.eastward:
            return found
        other = batch.target.roll(1)[:, None].expand_as(pairs.city)
        west = self.rank[other] < self.rank[pairs.city]
        city, target = pairs.city.where(west, pairs.target), other.where(west, pairs.city)
        never = self(city, target).float().log_softmax(-1)[..., -1]
        return (found + pairs.mean(-never)) / 2

    def log_within(self, city: Tensor, target: Tensor, hops: Tensor | int) -> Tensor:
        """Return log P(the target is at most `hops` hops away); all broadcast.

        It is 0 at the target itself, and minus infinity for fewer than 1 hop elsewhere. From
        `MOST_HOPS` on it is the log-probability of any path at all.
        """
        log_p = self(city, target).float().log_softmax(-1)[..., :-1]
        upto = F.pad(log_p.logcumsumexp(-1), (1, 0), value=float("-inf"))
        at = torch.as_tensor(hops, device=log_p.device).clamp(0, MOST_HOPS)
        at = at.expand(log_p.shape[:-1])[..., None]
        chance = upto.gather(-1, at)[..., 0].clamp(max=0.0)
        return chance.where((city != target).expand_as(chance), 0.0)
