"""A waypoint conductor: a network that names the middle city of a path."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import unit_sphere
from citypaths.models.base import CityInput, Coordinates, Head, Network, register


@register("conductor", writes=False)
class Conductor(Network):
    """The middle city (by hops) of the path between two cities, or that they are adjacent.

    A feed-forward network of the two ends and of the city nearest to half way. It learns from one
    random part of a path for every hop: parts of shortest paths are shortest paths. Their lengths
    are spread evenly on a logarithmic scale, as halving meets them. Divide and conquer over
    sub-goals: Jurgenson et al. 2020 (sub-goal trees).

    Args:
        graph: decides the vocabulary and the coordinates.
        width: of each city's vector; hidden layers are twice as wide. layers: of those.
        tied, coordinates: see `Head` and `CityInput`.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        width: int = 128,
        layers: int = 2,
        tied: bool = True,
        coordinates: Coordinates = "none",
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a conductor has at least one hidden layer, not {layers}")
        self.cities, self.width, self.depth = len(graph), width, layers
        self.inputs = CityInput(graph, width, coordinates=coordinates)
        sphere = torch.as_tensor(unit_sphere(graph.lat, graph.lon))
        sphere = (sphere - sphere.mean(0)) / sphere.std().clamp(min=1e-9)
        self.register_buffer("place", sphere.float(), persistent=False)
        self.first = nn.Linear(3 * width + 7, 2 * width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in range(layers - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(2 * width) for _ in range(layers))
        self.head = Head(2 * width, self.cities, tied=self.inputs.embedding if tied else None)
        self.adjacent = nn.Linear(2 * width, 1)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits [N, V + 1] of the middle between cities [N]; the last is "adjacent"."""
        a, b = self.place[source], self.place[target]
        half = ((a + b) / 2 @ self.place.T - (self.place**2).sum(1) / 2).argmax(-1)
        near = (a - b).norm(dim=-1, keepdim=True)
        x = torch.cat([*map(self.inputs.city, (source, target, half)), a, b, near], -1)
        x = self.norms[0](self.first(x))
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            x = x + layer(F.relu(x))
            x = norm(x)
        x = F.relu(x)
        return torch.cat([self.head(x), self.adjacent(x)], -1)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy of the middles of random parts, one a hop.

        When not training, the parts are a fixed function of the batch's shape.
        """
        source, target, middle = self.parts(batch)
        return F.cross_entropy(self(source, target).float(), middle, ignore_index=IGNORE)

    def parts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a part of its path for each of the batch's B T hops: ends and middle [B T].

        The middle of two adjacent cities is `cities`, and -100 after a path's end. The part for
        the first hop of a path is the whole path.
        """
        real = batch.labels != IGNORE
        generator = None if self.training else torch.Generator(real.device).manual_seed(0)
        draw = torch.rand(2, *real.shape, generator=generator, device=real.device)
        hops = real.sum(1, keepdim=True)
        length = ((hops + 1.0) ** draw[0]).long().clamp(min=1).minimum(hops)
        length[:, 0] = hops[:, 0]
        first = (draw[1] * (hops - length + 1)).long().minimum(hops - length)
        path = torch.cat([batch.cities[:, :1], batch.labels.clamp(min=0)], 1)
        source, target, middle = (
            path.gather(1, at) for at in (first, first + length, first + length // 2)
        )
        middle = middle.masked_fill(length == 1, self.cities).masked_fill(~real, IGNORE)
        return source.flatten(), target.flatten(), middle.flatten()

    def flops_per_step(self, loops: int | None = None) -> int:
        """Matrix products of naming one middle; training does so once a hop."""
        wide, hidden = 3 * self.width + 7, 2 * self.width
        layers = 2 * wide * hidden + 2 * hidden * hidden * len(self.layers)
        half = 6 * self.cities
        return layers + half + 3 * self.inputs.flops + self.head.flops + 2 * hidden
