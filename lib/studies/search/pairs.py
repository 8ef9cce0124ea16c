"""What networks on (city, target) pairs share: pairs from paths, and a factored trunk.

hidden = relu(A[city] + B[target] + C(relative position)): the first layer costs a sum of two table
rows, so that all cities at once, for one target, are little more than the layers behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import EARTH_RADIUS_KM, unit_sphere
from citypaths.models.base import Network

HARMONICS = 4
RELATIVE = 2 * HARMONICS + 2
AT_ONCE = 2**15  # pairs whose hidden states are in memory together


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
        width: of the first, factored layer. inner, layers: width and number of those behind it.
        inside: share of training pairs that end at a random later city of the path, not its last;
            0 trains on the paths' own targets alone, as the target split needs.

    Raises:
        ValueError: edge lengths are not great-circle km (a jittered or rounded graph), or `inside`
            is no share.
    """

    def __init__(
        self,
        graph: CityGraph,
        outputs: int,
        *,
        width: int = 128,
        inner: int = 64,
        layers: int = 1,
        inside: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= inside <= 1:
            raise ValueError(f"inside is a share of the pairs, not {inside}")
        _require_great_circles(graph)
        self.cities, self.inside = len(graph), inside
        self.city, self.goal = (nn.Embedding(len(graph), width) for _ in range(2))
        for table in (self.city, self.goal):  # small: what the position says is learned first
            nn.init.normal_(table.weight, std=0.03)
        self.relative = nn.Linear(RELATIVE, width)
        sizes = [width, *[inner] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], outputs)
        points = unit_sphere(graph.lat, graph.lon)
        self.spread_km = 2 * EARTH_RADIUS_KM * max(float(points.std(0).max()), 1e-6)
        self.register_buffer("points", torch.as_tensor(points), persistent=False)
        self.register_buffer("frame", _frames(graph), persistent=False)

    @property
    def flops_per_call(self) -> int:
        """Return the floating-point operations of one pair."""
        linear = (self.relative, *self.layers, self.head)
        return sum(2 * layer.in_features * layer.out_features for layer in linear)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of one pair: training takes one a hop."""
        return self.flops_per_call

    def straight_km(self, city: Tensor, target: Tensor) -> Tensor:
        """Return great-circle km between cities, float32; shapes broadcast."""
        return self._chord(city, target)[1]

    def forward(self, city: Tensor, target: Tensor) -> Tensor:
        """Return outputs [..., outputs] for ids that broadcast."""
        hidden = self.city(city) + self.goal(target) + self.relative(self._position(city, target))
        for layer in self.layers:
            hidden = layer(F.relu(hidden))
        return self.head(F.relu(hidden))

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

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.head.weight.device

    @torch.no_grad()
    def over_cities(self, estimate: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Tensor:
        """Return estimate(city, target) [n, V] of every city and each of `targets` [n]."""
        cities = torch.arange(self.cities, device=self.device)
        rows = torch.as_tensor(targets, device=self.device).split(max(1, AT_ONCE // self.cities))
        parts = [estimate(cities, some[:, None]) for some in rows if len(some)]
        return torch.cat(parts) if parts else self.frame.new_zeros((0, self.cities))


def _require_great_circles(graph: CityGraph) -> None:
    straight = graph.distance_km(graph.edge_sources, graph.indices)
    worst = np.abs(graph.km - straight).max(initial=0.0)
    if worst > 1e-3:
        raise ValueError(
            f"{graph} has an edge {worst:.3g} km off the great circle: pairs learn lengths from "
            "coordinates, so the graph must be neither jittered nor rounded"
        )


def _frames(graph: CityGraph) -> Tensor:
    """Unit vectors to the east and the north of each city, float32 [V, 2, 3]."""
    lat, lon = np.radians(graph.lat), np.radians(graph.lon)
    east = [-np.sin(lon), np.cos(lon), np.zeros_like(lon)]
    north = [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)]
    frames = np.stack([np.stack(east, -1), np.stack(north, -1)], 1)
    return torch.as_tensor(frames, dtype=torch.float32)
