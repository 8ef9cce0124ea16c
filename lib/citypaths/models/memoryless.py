"""A network without memory: the next city from the current one and the target alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import FEATURES, PathModel, register


class FeedForward(nn.Module):
    """A residual layer: x + V relu(W norm(x))^2 (squared ReLU: So et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.rise = nn.Linear(width, 4 * width, bias=False)
        self.fall = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors of the shape of `x` [..., width]."""
        return x + self.fall(F.relu(self.rise(self.norm(x))).square())


@register("memoryless")
class Memoryless(PathModel):
    """Two embeddings, a projection, residual feed-forward layers and a softmax over cities.

    On a fixed map with exact shortest paths the next hop is a function of (city, target), so what
    a sequence model gains over this one is what its history is worth: the control of every study.

    Args:
        graph: decides the vocabulary and the coordinates; its edges are not read.
        width: of vectors and layers. layers: feed-forward layers, four times as wide inside.
        coordinates: of `FEATURES`, where a city is, projected and added to its vectors.
    """

    def __init__(
        self, graph: CityGraph, *, width: int = 128, layers: int = 2,
        coordinates: str = "none",
    ) -> None:  # fmt: skip
        super().__init__()
        self.cities, self.width = len(graph), width
        self.city, self.goal = (nn.Embedding(len(graph), width) for _ in range(2))
        place = torch.as_tensor(FEATURES[coordinates](graph, width), dtype=torch.float32)
        self.register_buffer("place", place, persistent=False)
        located = place.shape[1]
        self.city_at, self.goal_at = (
            nn.Linear(located, width, bias=False) if located else None for _ in range(2)
        )
        self.project = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList(FeedForward(width) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, len(graph))
        for embedding in (self.city, self.goal):
            nn.init.normal_(embedding.weight, std=0.5)
        nn.init.zeros_(self.head.bias)
        inner = sum(layer.rise.weight.numel() for layer in self.layers)
        self._flops = 2 * (2 * width * width + 2 * inner + width * (len(graph) + 2 * located))

    def state(self, city: Tensor, target: Tensor) -> Tensor:
        """Return what the head reads, [..., width], for cities and targets of one shape."""
        own, goal = self.city(city), self.goal(target)
        if self.city_at is not None:
            own = own + self.city_at(self.place[city])
            goal = goal + self.goal_at(self.place[target])
        x = self.project(torch.cat([own, goal], -1))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def states(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the states [B, T, width] over `batch.cities`; there are no loops to take."""
        return self.state(batch.cities, batch.target[:, None].expand_as(batch.cities))

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return logits [B, T, V] for the city after each of `batch.cities`."""
        return self.head(self.states(batch))

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> Tensor:
        """Return the targets [B]: all there is to remember."""
        return target

    def step(self, city: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, V] after the current city [B], and the targets again."""
        return self.head(self.state(city, state)), state

    def reorder(self, state: Tensor, index: Tensor) -> Tensor:
        """Return the targets of rows `index`."""
        return state[index]

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the matrix products of the projection, the layers and the head."""
        return self._flops
