"""Lookahead by value: the best partial paths by km so far + km to go, some hops or all the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from citypaths.decoding.budget import Budget
from citypaths.decoding.decode import SYNC_EVERY
from citypaths.map.paths import Found
from studies.search.worlds import FAR, Purse, World, enter, in_batches


def lookahead(
    world: World,
    source,
    target,
    max_hops: int,
    *,
    depth: int = 2,
    breadth: int = 4,
    budget: Budget = Budget(),  # noqa: B008
    batch: int = 256,
) -> Found:
    """Before every hop look `depth` hops ahead along the `breadth` best partial paths; take one.

    Partial paths are ranked by km so far + km to go; the first hop of the best is taken. No city
    is entered twice. depth=1 is greedy on hop km + km to go.
    """
    if depth < 1 or breadth < 1:
        raise ValueError(f"depth and breadth are at least 1, not {depth} and {breadth}")
    options = {"budget": budget, "batch": batch, "depth": depth, "breadth": breadth}
    return in_batches(_lookahead, world, source, target, max_hops, **options)


def beam_with_value(
    world: World,
    source,
    target,
    max_hops: int,
    *,
    width: int = 8,
    budget: Budget = Budget(),  # noqa: B008
    batch: int = 256,
) -> Found:
    """Keep the `width` best partial paths by km so far + km to go; return the best that arrives.

    A search ends when no partial path in progress is ranked before one that arrived. Where none
    arrives, the best partial path is returned.
    """
    if width < 1:
        raise ValueError(f"width is at least 1, not {width}")
    options = {"budget": budget, "batch": batch, "width": width}
    return in_batches(_beam, world, source, target, max_hops, **options)


@dataclass
class Fringe:
    """The partial paths of Q queries, best first: ids, km, to go [Q, B]; `way` [Q, B, hops + 1].

    `entered` [Q, V] is the least km at which a city was entered: a partial path that comes to it
    with no less is dropped. `first` [Q, B, L] are the latents after the first hop.
    """

    goal: Tensor
    city: Tensor
    km: Tensor
    togo: Tensor
    way: Tensor
    latent: Tensor
    first: Tensor
    entered: Tensor

    @classmethod
    def at(cls, world: World, city: Tensor, goal: Tensor, latent: Tensor, hops: int) -> Fringe:
        """Begin at cities [Q] with their latents [Q, L], with room for so many hops."""
        way = city.new_full((len(city), 1, hops + 1), -1)
        way[:, 0, 0] = city
        km = torch.zeros(len(city), 1, dtype=torch.float64, device=city.device)
        entered = km.new_full((len(city), world.cities), FAR).scatter(1, city[:, None], 0.0)
        togo = world.straight(city, goal)[:, None]
        return cls(goal, city[:, None], km, togo, way, latent[:, None], latent[:, None], entered)

    @property
    def rank(self) -> Tensor:
        """Km so far + to go, [Q, B]."""
        return self.km + self.togo

    @property
    def going(self) -> Tensor:
        """Whether a partial path can go on: it exists and has not arrived, [Q, B]."""
        return (self.city != self.goal[:, None]) & self.rank.isfinite()

    def advance(self, world: World, purse: Purse, going: Tensor, breadth: int, hop: int) -> Tensor:
        """Take hop number `hop` on the partial paths `going` [Q, B]; keep the `breadth` best.

        A query whose hop leads nowhere new, or costs more than it may spend, stays as it is, and
        would stay so. Returns which ones [Q] did go on.
        """
        queries, before = self.city.shape
        flat = self.city.flatten()
        price = world.price(flat, False).view(queries, before, 3) * going[..., None]
        going = going & purse.pay(price.sum(1))[:, None]
        goal = self.goal.repeat_interleave(before)
        children = world.expand(flat, goal, self.latent.flatten(0, 1), False)
        city = children.city.view(queries, -1)
        km = (self.km.flatten()[:, None] + children.km).view(queries, -1)
        km = km.masked_fill((city < 0) | ~going.repeat_interleave(world.width, 1), FAR)
        km = self._enter(city.clamp_min(0), km)
        togo = children.togo.view(queries, -1)
        moved = (km + togo).isfinite().any(1)
        stays = self.rank.masked_fill(going & moved[:, None], FAR)
        rank = torch.cat([km + togo, stays], 1)
        rank, pick = rank.topk(min(breadth, rank.shape[1]), largest=False)
        self._follow(pick, children.latent.view(queries, city.shape[1], -1), city, km, togo, hop)
        self.togo = self.togo.masked_fill(rank.isinf(), FAR)
        return moved

    def _enter(self, city: Tensor, km: Tensor) -> Tensor:
        """Return km with infinity where the city was entered at no more before, or is now."""
        km = km.masked_fill(km >= self.entered.gather(1, city), FAR)
        self.entered = self.entered.scatter_reduce(1, city, km, "amin")
        return km.masked_fill(km > self.entered.gather(1, city), FAR)

    def _follow(self, pick, latent, city, km, togo, hop: int) -> None:
        """Keep what is picked [Q, kept] among children and then the old partial paths."""
        queries, before = self.city.shape
        count, rows = city.shape[1], torch.arange(queries, device=pick.device)[:, None]
        moves = pick < count
        parent = torch.where(moves, pick // (count // before), pick - count)
        child = pick.clamp(max=count - 1)
        old = (self.city, self.km, self.togo)
        self.city, self.km, self.togo = (
            torch.where(moves, new.gather(1, child), was[rows, parent])
            for new, was in zip((city, km, togo), old, strict=True)
        )
        kept = self.latent[rows, parent]
        self.latent = torch.where(moves[..., None], latent[rows, child], kept)
        self.first = self.latent if hop == 1 else self.first[rows, parent]
        self.way = self.way[rows, parent]
        self.way[:, :, hop] = torch.where(moves, self.city, self.way[:, :, hop])


def _lookahead(world: World, source, target, max_hops, purse: Purse, *, depth, breadth) -> Tensor:
    out = source.new_full((len(source), max_hops + 1), -1)
    out[:, 0] = city = source
    latent, alive = enter(world, source, target, purse)
    walked = torch.full((len(source), world.cities), FAR, dtype=torch.float64, device=out.device)
    for t in range(1, max_hops + 1):
        if (t - 1) % SYNC_EVERY == 0 and not bool(alive.any()):
            break
        ahead = min(depth, max_hops - t + 1)
        walked.scatter_(1, city[:, None], -1.0)
        fringe = Fringe.at(world, city, target, latent, ahead)
        fringe.entered = fringe.entered.minimum(walked)
        looking = alive
        for hop in range(1, ahead + 1):
            going = fringe.going & looking[:, None]
            looking = fringe.advance(world, purse, going, breadth, hop)
        alive = alive & purse.open & (fringe.way[:, 0, 1:2] >= 0).all(1)
        city = torch.where(alive, fringe.way[:, 0, 1:2].flatten(), city)
        latent = torch.where(alive[:, None], fringe.first[:, 0], latent)
        out[:, t] = torch.where(alive, city, -1)
        alive = alive & (city != target)
    return out


def _beam(world: World, source, target, max_hops, purse: Purse, *, width) -> Tensor:
    latent, alive = enter(world, source, target, purse)
    fringe = Fringe.at(world, source, target, latent, max_hops)
    for hop in range(1, max_hops + 1):
        arrived = fringe.rank.masked_fill(fringe.city != target[:, None], FAR)
        going = fringe.going & (fringe.rank < arrived.amin(1, keepdim=True))
        going &= alive[:, None]
        if (hop - 1) % SYNC_EVERY == 0 and not bool(going.any()):
            break
        alive = fringe.advance(world, purse, going, width, hop)
    rank = torch.where(fringe.city == target[:, None], fringe.rank, fringe.rank + 1e9)
    best = rank.argmin(1)
    return fringe.way[torch.arange(len(best), device=best.device), best]
