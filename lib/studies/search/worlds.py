"""What a tree search walks in: the map itself, or the latents of a model that foresees."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from citypaths.decoding.decode import NEVER, Moves, device_of
from citypaths.decoding.scorers import Value
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import arc_km, unit_sphere
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel
from studies.search.planner import Planner

FAR = float("inf")
BREADTH = 8  # most probable next cities that a planner imagines
SURPRISE = 8.0  # km that an imagined hop costs for each nat of improbability: it may be no edge
ASTRAY = 5.0  # km that certainty of being astray costs


class GreatCircle:
    """Great-circle km to go: free in every regime, never too much, and nowhere infinite."""

    flops_per_call = 0

    def __init__(self, graph: CityGraph, device: torch.device | str = "cpu") -> None:
        """Keep the cities' places on `device`."""
        self.sphere = torch.as_tensor(unit_sphere(graph.lat, graph.lon)).to(device)
        self.device = self.sphere.device

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """Return km, float64, for ids that broadcast."""
        return arc_km(self.sphere, city, target)


@dataclass(frozen=True)
class Children:
    """Where one hop leads from each of N cities, C at most: ids [N, C], -1 where there is none.

    Attributes:
        prior, km, togo: float64 [N, C]: the policy, the hop, what the value says (0 at the target).
        latent: [N, C, L], what the world keeps of the way there.
        spent: float64 [N, 3]: operations, look-ups and expansions of having asked.
    """

    city: Tensor
    prior: Tensor
    km: Tensor
    togo: Tensor
    latent: Tensor
    spent: Tensor


class MapWorld:
    """The map: legal hops, exact lengths, a Markov policy over them, and any value.

    Each expansion reads one city's out-edges, each out-edge is a look-up. The policy asks `model`
    afresh from every city; without a model it is uniform.
    """

    def __init__(self, graph: CityGraph, model: PathModel | None, value: Value) -> None:
        self.model, self.value, self.cities = model, value, len(graph)
        where = device_of(model) if model is not None else getattr(value, "device", "cpu")
        self.device, self.policy_flops = torch.device(where), 0
        if model is not None:
            self.policy_flops = model.flops_to_start + model.flops_per_step()
        self.table = Moves.of(graph, self.device).table
        self.width = self.table.shape[1]
        km = torch.full(self.table.shape, torch.inf, dtype=torch.float64)
        km[self.table.cpu() < self.cities] = torch.as_tensor(graph.mm / 1e6)
        self.km = km.to(self.device)
        self.straight = GreatCircle(graph, self.device).togo

    def begin(self, source: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return latents [N, 0] and no operations: nothing is kept of the way."""
        return torch.zeros(len(source), 0, device=self.device), 0

    def expand(self, city: Tensor, target: Tensor, latent: Tensor) -> Children:
        """Return the children of cities [N] on the way to their targets."""
        table = self.table[city]
        real = table < self.cities
        child, goal = table.where(real, 0), target[:, None].expand_as(table)
        prior = real / real.sum(1, keepdim=True).clamp_min(1)
        if self.model is not None:
            logits, _ = self.model.step(city, self.model.start(city, target))
            near = logits.gather(1, child).double().masked_fill(~real, NEVER)
            prior = near.softmax(1).where(real, 0.0)  # no number where there is no child
        togo = self.value.togo(child.flatten(), goal.flatten()).view(child.shape).double()
        togo = togo.where(child != goal, 0.0)
        kept = latent[:, None].expand(-1, self.width, -1)
        degree = real.sum(1).double()
        flops = self.policy_flops + degree * self.value.flops_per_call
        spent = torch.stack([flops, degree, torch.ones_like(degree)], -1)
        return Children(child.where(real, -1), prior.double(), self.km[city], togo, kept, spent)


class LatentWorld:
    """A planner's own latents: the hops it would take, imagined closed-book.

    Children are its most probable next cities. A hop costs its great circle, and `SURPRISE` km a
    nat of improbability. What is to go is what the value head foresees, and `ASTRAY` km times its
    probability of being astray.
    """

    def __init__(self, planner: Planner, breadth: int = BREADTH) -> None:
        self.planner, self.cities = planner, planner.cities
        self.width, self.device = min(breadth, planner.cities), planner.sphere.device
        self.straight = planner.km
        each = planner.transition_flops + planner.outlook_flops
        self.flops = float(planner.policy_flops + self.width * each)

    def begin(self, source: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return the latents [N, L] of sources [N], and their operations for one query."""
        return self.planner.begin(source, target), self.planner.begin_flops

    def expand(self, city: Tensor, target: Tensor, latent: Tensor) -> Children:
        """Return the children of cities [N] on the way to their targets."""
        log_p, child = self.planner.policy(latent).double().log_softmax(-1).topk(self.width)
        km = self.planner.km(city[:, None], child) - SURPRISE * log_p
        goal, rows = target.repeat_interleave(self.width), child.flatten()
        after = self.planner.transition(latent.repeat_interleave(self.width, 0), rows, goal)
        togo, astray = self.planner.outlook(after, rows, goal)
        togo, charge = togo.view(child.shape), ASTRAY * astray.double().view(child.shape)
        arrives = child == target[:, None]
        km, togo = km + charge.where(arrives, 0.0), (togo + charge).where(~arrives, 0.0)
        child = child.where(log_p > NEVER, -1)
        spent = km.new_tensor([self.flops, 0.0, 0.0]).expand(len(city), 3)
        return Children(child, log_p.exp(), km, togo, after.view(*child.shape, -1), spent)


World = MapWorld | LatentWorld


def queries_of(world: World, source, target) -> tuple[Tensor, Tensor]:
    """Return ids [Q] on the world's device.

    Raises:
        ValueError: not as many sources as targets, or an id that is no city.
    """
    ids = [torch.tensor(np.array(x, np.int64), device=world.device) for x in (source, target)]
    if len(ids[0]) != len(ids[1]):
        raise ValueError(f"{len(ids[0])} sources but {len(ids[1])} targets")
    if any(bool(((x < 0) | (x >= world.cities)).any()) for x in ids):
        raise ValueError(f"cities have ids from 0 to {world.cities - 1}")
    return ids[0], ids[1]


def enter(world: World, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the latents [Q, L] of sources, who has a way to go [Q], and what each spent [Q, 3]."""
    (latent, flops), going = world.begin(source, target), source != target
    spent = torch.zeros(len(source), 3, dtype=torch.float64, device=world.device)
    spent[:, 0] = flops * going
    return latent, going, spent


def found_of(ids: Tensor, spent: Tensor, began: float) -> Found:
    """Return paths of ids [Q, hops + 1], -1 after the end, and what each query spent [Q, 3]."""
    rows = ids.cpu().numpy()
    paths, costs = Paths.from_padded(rows, (rows >= 0).sum(1)), spent.cpu().numpy().T.copy()
    return Found(paths, *costs, time.perf_counter() - began)
