"""The interface of every model, and the parts that all of them share: inputs and output head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import unit_sphere

Endpoints = Literal["every_step", "prefix"]
State = Any


class Network(nn.Module, ABC):
    """What `citypaths.training` trains on paths: a `PathModel`, or a network that judges them.

    A subclass sets `cities` (vocabulary size V) and `settings` (what `build` needs to make it
    again), and implements `loss` and `flops_per_step`.
    """

    cities: int
    settings: dict[str, Any]

    @abstractmethod
    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean loss a hop of a batch."""

    @abstractmethod
    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the floating-point operations of one step of one path (a multiply-add is two)."""

    @property
    def training_flops_per_step(self) -> float:
        """Return the operations to train on one step: forward, and backward at twice that."""
        return 3 * self.flops_per_step()

    @property
    def parameters_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class PathModel(Network):
    """A model of the next city, given the query and the path so far.

    A subclass implements the five methods below. Teacher-forced logits must equal the step-by-step
    ones: `citypaths.models.check.assert_consistent` tests it.
    """

    @abstractmethod
    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return logits [B, T, V] for the city after each of `batch.cities`."""

    @abstractmethod
    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> State:
        """Return the state before the first step, for queries given as ids [B].

        `loops` overrides the recurrent steps of every step to come, where the model has any.
        """

    @abstractmethod
    def step(self, city: Tensor, state: State) -> tuple[Tensor, State]:
        """Take the current city [B] (the source first); return logits [B, V] and the new state."""

    @abstractmethod
    def reorder(self, state: State, index: Tensor) -> State:
        """Return the state with row i taken from row index[i]; index may be longer or shorter."""

    @property
    def flops_to_start(self) -> int:
        """Return the operations of `start` for one query (0 unless it runs the network)."""
        return 0

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per hop."""
        return nats(self(batch, loops), batch)


def nats(logits: Tensor, batch: Batch, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits [B, T, V] in nats: a mean over hops, or each [B T]."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels.flatten(), reduction=reduction
    )


def taken(loops: int | None, own: int) -> int:
    """Return the loops to take: those asked for, or the model's own for None.

    Raises:
        ValueError: fewer than one.
    """
    if loops is not None and loops < 1:
        raise ValueError(f"a model takes at least one loop, not {loops}")
    return own if loops is None else loops


_REGISTRY: dict[str, Callable[..., Network]] = {}
_JUDGES: set[str] = set()  # those of them that write no paths


def register(name: str, writes: bool = True) -> Callable[[Callable[..., Network]], Any]:
    """Register a class (called with `graph` and its settings) under a name.

    One that `writes` paths is a `PathModel`; another network is merely trained and loaded by name.
    """

    def keep(make: Callable[..., Network]) -> Callable[..., Network]:
        _REGISTRY[name] = make
        if not writes:
            _JUDGES.add(name)
        return make

    return keep


def registered() -> list[str]:
    """Return the names of the models of paths that `build` knows."""
    return sorted(set(_REGISTRY) - _JUDGES)


def build(name: str, graph: CityGraph, **settings: Any) -> Any:
    """Build a registered model, or another registered network, for a graph.

    Raises:
        KeyError: an unknown name; the message lists the known ones.
    """
    if name not in _REGISTRY:
        raise KeyError(f"no model {name!r}; registered: {', '.join(sorted(_REGISTRY))}")
    model = _REGISTRY[name](graph, **settings)
    model.settings = {"model": name} | settings
    return model


def on_sphere(graph: CityGraph, width: int = 0) -> np.ndarray:
    """Return where each city is on the unit sphere, standardised, float64 [V, 3]."""
    sphere = unit_sphere(graph.lat, graph.lon)
    return (sphere - sphere.mean(0)) / np.maximum(sphere.std(0), 1e-9)


# Fixed features [V, any] of a graph's cities for a network of a width, by name.
FEATURES: dict[str, Callable[[CityGraph, int], np.ndarray]] = {
    "none": lambda graph, width: np.zeros((len(graph), 0)),
    "raw": on_sphere,
}


class CityInput(nn.Module):
    """Turn cities and the query into input vectors [..., width].

    One vector a city is learned; `coordinates` (of `FEATURES`) adds a projection of where it is.
    With `endpoints="every_step"` the target's vector (through a projection of its own) joins each
    step; with "prefix" the target is seen once, before the source.
    """

    def __init__(
        self,
        graph: CityGraph,
        width: int,
        *,
        coordinates: str = "none",
        endpoints: Endpoints = "every_step",
    ) -> None:
        super().__init__()
        if endpoints not in ("every_step", "prefix"):
            raise ValueError(f"endpoints are fed every_step or as a prefix, not {endpoints!r}")
        if coordinates not in FEATURES:
            raise ValueError(f"coordinates are {', '.join(FEATURES)}, not {coordinates!r}")
        self.every_step = endpoints == "every_step"
        self.embedding = nn.Embedding(len(graph), width)
        features = torch.as_tensor(FEATURES[coordinates](graph, width), dtype=torch.float32)
        self.register_buffer("place", features, persistent=False)
        self.locate = (
            nn.Linear(self.place.shape[1], width, bias=False) if self.place.shape[1] else None
        )
        self.as_target = nn.Linear(width, width, bias=False)
        self.flops = 2 * width * self.place.shape[1]
        self.goal_flops = self.flops + 2 * width * width
        nn.init.normal_(self.embedding.weight, std=0.5)

    def city(self, ids: Tensor) -> Tensor:
        """Return vectors [..., width] for ids [...]."""
        learned = self.embedding(ids)
        return learned if self.locate is None else learned + self.locate(self.place[ids])

    def forward(self, city: Tensor, goal: Tensor) -> Tensor:
        """Return inputs for cities [...] with a goal vector that broadcasts ([..., width])."""
        return self.city(city) + goal if self.every_step else self.city(city)

    def goal(self, target: Tensor) -> Tensor:
        """Return goal vectors [B, width] for targets [B]."""
        return self.as_target(self.city(target))


class Head(nn.Module):
    """Logits over cities from states: a softmax, or a mixture of `softmaxes` (Yang et al. 2018).

    With `tied` the output vectors are the input embedding's. Returns log-probabilities when mixed.
    """

    def __init__(
        self, width: int, cities: int, softmaxes: int = 1, tied: nn.Embedding | None = None
    ):
        super().__init__()
        self.softmaxes = softmaxes
        inner = tied.embedding_dim if tied is not None else width
        self.out = nn.Linear(inner, cities)
        if tied is not None:
            self.out.weight = tied.weight
        nn.init.zeros_(self.out.bias)
        self.project = (
            nn.Linear(width, inner * softmaxes) if softmaxes > 1 or tied is not None else None
        )
        self.gate = nn.Linear(width, softmaxes, bias=False) if softmaxes > 1 else None
        self.flops = 2 * inner * cities * softmaxes
        if self.project is not None:
            self.flops += 2 * width * inner * softmaxes
        if self.gate is not None:
            self.flops += 2 * width * softmaxes

    def forward(self, state: Tensor) -> Tensor:
        """Return logits [..., V] for states [..., width]."""
        if self.project is None:
            return self.out(state)
        if self.gate is None:
            return self.out(self.project(state))
        latent = torch.tanh(self.project(state)).unflatten(-1, (self.softmaxes, -1))
        log_p = F.log_softmax(self.out(latent).float(), -1)
        return torch.logsumexp(log_p + F.log_softmax(self.gate(state).float(), -1)[..., None], -2)
