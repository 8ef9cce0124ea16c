"""What a tree search walks in: the map itself, or the latents of a model that foresees."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from citypaths.decoding.budget import Budget
from citypaths.decoding.decode import NEVER, Moves, device_of
from citypaths.decoding.scorers import Value
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel
from studies.search.exact import GreatCircle
from studies.search.planner import Planner

FAR = float("inf")


@dataclass(frozen=True)
class Children:
    """Where one hop leads from each of N cities, C at most: ids [N, C], -1 where there is none.

    Attributes:
        prior, km, togo: float64 [N, C]: the policy, the hop, what the value says (0 at the target).
        latent: [N, C, L], what the world keeps of the way there.
    """

    city: Tensor
    prior: Tensor
    km: Tensor
    togo: Tensor
    latent: Tensor


class World(Protocol):
    """What a tree search asks for; rows are cities on the way to their targets.

    Attributes:
        cities, width: how many there are, and most children of one. networks: all that is called.
    """

    cities: int
    width: int
    device: torch.device
    networks: list[nn.Module]

    def root(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the latents [N, L] of sources [N]."""

    @property
    def root_flops(self) -> int:
        """Return the operations of `root` for one query."""

    def expand(self, city: Tensor, target: Tensor, latent: Tensor, priors: bool) -> Children:
        """Return the children of cities [N]; without `priors` they may be left uniform."""

    def price(self, city: Tensor, priors: bool) -> Tensor:
        """Return what `expand` spends on each city, float64 [N, 3] in the order of `Budget`."""

    def straight(self, city: Tensor, target: Tensor) -> Tensor:
        """Return km to go at least, float64, for ids that broadcast."""


class MapWorld:
    """The map: legal hops, exact lengths, a Markov policy over them, and any value.

    Each expansion reads one city's out-edges, each out-edge is a look-up. The policy asks `model`
    afresh from every city; without a model it is uniform.
    """

    def __init__(self, graph: CityGraph, model: PathModel | None, value: Value) -> None:
        self.model, self.value, self.cities = model, value, len(graph)
        where = device_of(model) if model is not None else getattr(value, "device", "cpu")
        self.device = torch.device(where)
        self.networks = [x for x in (model, value) if isinstance(x, nn.Module)]
        self.table = Moves.of(graph, self.device).table
        self.width = self.table.shape[1]
        self.degree = torch.as_tensor(np.diff(graph.indptr), device=self.device)
        km = torch.full(self.table.shape, torch.inf, dtype=torch.float64)
        km[self.table.cpu() < self.cities] = torch.as_tensor(graph.mm / 1e6)
        self.km = km.to(self.device)
        self.straight = GreatCircle(graph, self.device).togo
        self.root_flops = 0

    def root(self, source: Tensor, target: Tensor) -> Tensor:
        """See `World.root`: nothing is kept of the way."""
        return torch.zeros(len(source), 0, device=self.device)

    def expand(self, city: Tensor, target: Tensor, latent: Tensor, priors: bool) -> Children:
        """See `World.expand`."""
        table = self.table[city]
        real = table < self.cities
        child, goal = table.where(real, 0), target[:, None].expand_as(table)
        prior = real / real.sum(1, keepdim=True).clamp_min(1)
        if priors and self.model is not None:
            logits, _ = self.model.step(city, self.model.start(city, target))
            near = logits.gather(1, child).double().masked_fill(~real, NEVER)
            prior = near.softmax(1).where(real, 0.0)  # no number where there is no child
        togo = self.value.togo(child.flatten(), goal.flatten()).view(child.shape).double()
        togo = togo.where(child != goal, 0.0)
        kept = latent[:, None].expand(-1, self.width, -1)
        return Children(child.where(real, -1), prior.double(), self.km[city], togo, kept)

    def price(self, city: Tensor, priors: bool) -> Tensor:
        """See `World.price`: the policy, a value for every child, its out-edges, itself."""
        degree = self.degree[city].double()
        policy = 0
        if priors and self.model is not None:
            policy = self.model.flops_to_start + self.model.flops_per_step()
        flops = policy + degree * self.value.flops_per_call
        return torch.stack([flops, degree, torch.ones_like(degree)], -1)


class LatentWorld:
    """A planner's own latents: the hops it would take, imagined closed-book.

    Children are its `breadth` most probable next cities. A hop costs its great circle, and
    `surprise` km a nat of improbability: an improbable hop may be no edge. What is to go is what
    the value head foresees, and `astray` km times its probability of being astray.
    """

    def __init__(
        self, planner: Planner, *, breadth: int = 8, surprise: float = 8.0, astray: float = 5.0
    ) -> None:
        if breadth < 1 or surprise < 0 or astray < 0:
            raise ValueError("breadth is at least 1, surprise and astray are 0 km or more")
        self.planner, self.surprise, self.astray = planner, surprise, astray
        self.cities, self.width = planner.cities, min(breadth, planner.cities)
        self.device, self.networks = planner.sphere.device, [planner]
        self.straight = planner.km
        each = planner.transition_flops + planner.outlook_flops
        self.root_flops = planner.begin_flops
        self._flops = float(planner.policy_flops + self.width * each)

    def root(self, source: Tensor, target: Tensor) -> Tensor:
        """See `World.root`."""
        return self.planner.begin(source, target)

    def expand(self, city: Tensor, target: Tensor, latent: Tensor, priors: bool) -> Children:
        """See `World.expand`."""
        log_p, child = self.planner.policy(latent).double().log_softmax(-1).topk(self.width)
        km = self.planner.km(city[:, None], child) - self.surprise * log_p
        goal, rows = target.repeat_interleave(self.width), child.flatten()
        after = self.planner.transition(latent.repeat_interleave(self.width, 0), rows, goal)
        togo, astray = self.planner.outlook(after, rows, goal)
        togo, charge = togo.view(child.shape), self.astray * astray.double().view(child.shape)
        arrives = child == target[:, None]
        km, togo = km + charge.where(arrives, 0.0), (togo + charge).where(~arrives, 0.0)
        child = child.where(log_p > NEVER, -1)
        return Children(child, log_p.exp(), km, togo, after.view(*child.shape, -1))

    def price(self, city: Tensor, priors: bool) -> Tensor:
        """See `World.price`: one policy, and a transition and an outlook for every child."""
        price = torch.zeros(len(city), 3, dtype=torch.float64, device=self.device)
        price[:, 0] = self._flops
        return price


class Purse:
    """What each query of a batch has spent, [Q, 3] in the order of `Budget`, and who may go on."""

    def __init__(self, queries: int, budget: Budget, device: torch.device) -> None:
        limit = [budget.flops, budget.lookups, budget.expansions]
        self.limit = torch.tensor(limit, dtype=torch.float64, device=device)
        self.spent = torch.zeros(queries, 3, dtype=torch.float64, device=device)
        self.open = torch.ones(queries, dtype=torch.bool, device=device)

    def pay(self, price: Tensor) -> Tensor:
        """Charge prices [Q, 3] within the budget; return who may go on, as others never may."""
        self.open = self.open & (self.spent + price <= self.limit).all(1)
        self.spent += price * self.open[:, None]
        return self.open


def enter(world: World, source: Tensor, target: Tensor, purse: Purse) -> tuple[Tensor, Tensor]:
    """Return the latents [Q, L] of the sources, paid for, and who has a way to go and may go it."""
    alive = source != target
    price = torch.zeros_like(purse.spent)
    price[:, 0] = world.root_flops * alive
    return world.root(source, target), alive & purse.pay(price)


def in_batches(
    search: Callable[..., Tensor],
    world: World,
    source,
    target,
    max_hops: int,
    *,
    budget: Budget,
    batch: int,
    **options,
) -> Found:
    """Run `search` on slices of the queries, networks in evaluation mode; return paths and costs.

    `search(world, source, target, max_hops, purse, **options)` returns ids [Q, max_hops + 1], -1
    after the end.

    Raises:
        ValueError: no hops, an empty batch, unlike numbers of sources and targets, or an id that is
            no city.
    """
    if max_hops < 1 or batch < 1:
        raise ValueError(f"max_hops and batch are at least 1, not {max_hops} and {batch}")
    ids = [torch.tensor(np.array(x, np.int64), device=world.device) for x in (source, target)]
    if len(ids[0]) != len(ids[1]):
        raise ValueError(f"{len(ids[0])} sources but {len(ids[1])} targets")
    if any(bool(((x < 0) | (x >= world.cities)).any()) for x in ids):
        raise ValueError(f"cities have ids from 0 to {world.cities - 1}")
    began, modes = time.perf_counter(), [network.training for network in world.networks]
    paths, spent = [], [np.zeros((0, 3))]
    with torch.inference_mode():
        for network in world.networks:
            network.eval()
        for s, t in zip(*(x.split(batch) for x in ids), strict=True):
            purse = Purse(len(s), budget, world.device)
            if len(s):
                out = search(world, s, t, max_hops, purse, **options).cpu().numpy()
                paths.append(Paths.from_padded(out, (out >= 0).sum(1)))
                spent.append(purse.spent.cpu().numpy())
        for network, mode in zip(world.networks, modes, strict=True):
            network.train(mode)
    costs = np.concatenate(spent).T.copy()
    return Found(Paths.concatenate(paths), *costs, time.perf_counter() - began)
