"""What models of a whole sequence share: inputs, head, and decoding that carries a memory along."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import CityInput, Coordinates, Endpoints, Head, PathModel, taken
from citypaths.models.cache import Cache

Memory = Any  # None, or tensors (a row a path) and caches in any nesting of lists, tuples, dicts


class SequenceModel(PathModel):
    """A `PathModel` made of input vectors, an encoder and a head; subclasses write the encoder.

    A subclass sets `loops`, the recurrent steps it takes a city when not told otherwise, and
    implements `encode`, `encode_step` and `core_flops`.
    """

    def __init__(
        self,
        graph: CityGraph,
        width: int,
        *,
        loops: int = 1,
        softmaxes: int = 1,
        tied: bool = True,
        ids: bool = True,
        coordinates: Coordinates = "none",
        endpoints: Endpoints = "every_step",
    ) -> None:
        super().__init__()
        self.cities, self.width, self.loops = len(graph), width, taken(loops, 1)
        self.inputs = CityInput(graph, width, ids=ids, coordinates=coordinates, endpoints=endpoints)
        self.head = Head(width, len(graph), softmaxes, self.inputs.embedding if tied else None)

    @abstractmethod
    def encode(self, inputs: Tensor, loops: int) -> Tensor:
        """Return the states [B, T, width] that the head reads, for input vectors [B, T, width]."""

    @abstractmethod
    def encode_step(self, inputs: Tensor, memory: Memory, loops: int) -> tuple[Tensor, Memory]:
        """Take input vectors [B, width] (memory: None at first); return states and new memory."""

    @abstractmethod
    def core_flops(self, loops: int) -> int:
        """Return the operations of one `encode_step` of one path."""

    def states(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the encoder's states [B, T, width] over `batch.cities`."""
        loops = self.take_loops(loops)
        return self.without_prefix(self.encode(self.embed(batch), loops))

    def take_loops(self, loops: int | None) -> int:
        """Return the loops to take, the model's own for None."""
        return taken(loops, self.loops)

    def embed(self, batch: Batch) -> Tensor:
        """Return input vectors [B, T, width], or [B, 1 + T, width] with the target as a prefix."""
        goal = self.inputs.goal(batch.target)[:, None]
        inputs = self.inputs(batch.cities, goal)
        return inputs if self.inputs.every_step else torch.cat([goal, inputs], 1)

    def without_prefix(self, states: Tensor) -> Tensor:
        """Return the states [B, T, ...] of the cities alone."""
        return states if self.inputs.every_step else states[:, 1:]

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return logits [B, T, V]; see `PathModel.forward`."""
        return self.head(self.states(batch, loops))

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> dict[str, Any]:
        """Return the goal vectors, an empty memory (or one of the prefix) and the loops to take."""
        goal, loops, memory = self.inputs.goal(target), self.take_loops(loops), None
        if not self.inputs.every_step:
            _, memory = self.encode_step(goal, None, loops)
        return {"goal": goal, "memory": memory, "loops": loops}

    def step(self, city: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Advance one city; see `PathModel.step`."""
        inputs = self.inputs(city, state["goal"])
        hidden, memory = self.encode_step(inputs, state["memory"], state["loops"])
        return self.head(hidden), state | {"memory": memory}

    def reorder(self, state: dict[str, Any], index: Tensor) -> dict[str, Any]:
        """Take rows `index` of the state."""

        def taken_from(part: Tensor | Cache) -> Tensor | Cache:
            return part.take(index) if isinstance(part, Cache) else part[index]

        return tree_map_only((Tensor, Cache), taken_from, state)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Matrix products of the input, the encoder and the head."""
        return self.inputs.flops + self.core_flops(taken(loops, self.loops)) + self.head.flops

    @property
    def flops_to_start(self) -> int:
        """The target's projection, and one step of the encoder where it is a prefix."""
        core = 0 if self.inputs.every_step else self.core_flops(self.loops)
        return self.inputs.goal_flops + core
