"""Monte-Carlo tree search and beams by value, for many queries at once, in arrays."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from citypaths.decoding.decode import SYNC_EVERY
from citypaths.map.paths import Found
from studies.search.worlds import FAR, Children, World, enter, found_of

ROOM = 64  # nodes a tree has room for at first; doubled when full
PRIOR = 0.03  # weight of the policy's bonus in PUCT, in great circles from source to target
ROUNDING = 1e-5  # km by which hops rounded to millimetres may undercut great circles


@torch.inference_mode()
def mcts(world: World, source, target, max_hops: int, *, simulations: int = 64) -> Found:
    """Search a tree from the source by PUCT; return the shortest complete path that it saw.

    A simulation descends to a city that is not expanded yet, expands it, and dives on from there
    while its most promising child is open, to the target or a dead end. Costs are km: each city
    backs up the least over its children of hop + km to go, as the world is deterministic. A child
    is closed once nothing shorter can come of it: entered sooner by another way (in however many
    hops), or no shorter by great circle than the best path; a search ends early when all are. Where
    no path is complete, the way to the expanded city nearest the target is returned. After
    AlphaZero (Silver et al. 2018) and PUCT (Rosin 2011).

    Raises:
        ValueError: no simulations, or queries that are not pairs of cities.
    """
    if simulations < 1:
        raise ValueError(f"simulations are 1 or more, not {simulations}")
    began = time.perf_counter()
    trees, spent = grown(world, source, target, max_hops, simulations)
    return found_of(trees.paths(), spent, began)


def grown(world: World, source, target, max_hops: int, simulations: int) -> tuple[Trees, Tensor]:
    """Return the trees [Q] after so many simulations each, or fewer, and what they spent [Q, 3]."""
    source, target, latent, live, spent = enter(world, source, target)
    trees = Trees(world, source, target, latent, max_hops)
    children = world.expand(source, target, latent)
    spent += children.spent * live[:, None]
    first = at = done = torch.zeros_like(source)
    trees.make(source, first, first, first, first.double(), children, live)
    while trees.count % SYNC_EVERY != 1 or bool(live.any()):
        live = live & (done < simulations) & trees.alive(first).any(1)
        node, slot = trees.select(at)
        fresh = live & trees.alive(node)[trees.rows, slot]
        latent = trees.of("latent", node, slot)
        children = world.expand(trees.of("city", node, slot), target, latent)
        spent += children.spent * fresh[:, None]
        trees.grow(node, slot, children, fresh)
        onward = trees.go_on(fresh)
        trees.back_up(torch.where(fresh, trees.count - 1, node), fresh & ~onward)
        at, done = torch.where(onward, trees.count - 1, first), done + (fresh & ~onward)
    return trees, spent


class Trees:
    """A tree a query. Node m of every tree is made in round m, so ids need no book-keeping.

    `nodes` [Q, M]: city, km so far (infinite where a query made none), hops, parent and its slot.
    `kids` [Q, M, C]: city, hop km, least km of a path that goes there, prior, cost (the hop and
    what is to go after it), visits (simulations that went there), node (-1 until expanded), latent,
    and whether anything below is still to be expanded. `entered` [Q, V] is the least km to each
    city, `door` the child by which. `best` [Q] is km of the best complete path, `end` the node
    before its target.
    """

    def __init__(
        self, world: World, source: Tensor, goal: Tensor, latent: Tensor, max_hops: int
    ) -> None:
        self.world, self.goal, self.max_hops, self.count = world, goal, max_hops, 0
        self.rows = torch.arange(len(source), device=source.device)
        self.scale = world.straight(source, goal)
        nodes = torch.zeros(len(source), ROOM, dtype=torch.float64, device=source.device)
        many = nodes[..., None].repeat(1, 1, world.width)
        self.nodes = {name: nodes.long() for name in ("city", "hops", "parent", "slot")}
        self.nodes["km"] = nodes.clone()
        self.kids = {name: many.clone() for name in ("hop", "least", "prior", "cost", "visits")}
        self.kids |= {"city": many.long(), "node": many.long() - 1, "open": many.bool()}
        self.kids["latent"] = latent.new_zeros(*many.shape, latent.shape[-1])
        self.best, self.end = torch.full_like(self.scale, FAR), torch.zeros_like(source)
        self.entered = nodes.new_full((len(source), world.cities), FAR)
        self.entered.scatter_(1, source[:, None], 0.0)
        self.door = torch.full_like(self.entered, -1, dtype=torch.long)

    def of(self, name: str, node: Tensor, slot: Tensor | None = None) -> Tensor:
        """Return what is known of all children of nodes [Q], [Q, C], or of those in slots [Q]."""
        at = (self.rows, node) if slot is None else (self.rows, node, slot)
        return self.kids[name][at]

    def alive(self, node: Tensor) -> Tensor:
        """Return below which children of nodes [Q] a shorter path may still be found, [Q, C]."""
        return self.of("open", node) & (self.of("least", node) < self.best[:, None])

    def select(self, start: Tensor) -> tuple[Tensor, Tensor]:
        """Descend from nodes [Q] by PUCT to a child that is not expanded: return node and slot."""
        at, level = start, 0
        while True:
            visits = self.of("visits", at)
            bonus = (PRIOR * self.scale * (1 + visits.sum(1)).sqrt())[:, None]
            score = self.of("cost", at) - bonus * self.of("prior", at) / (1 + visits)
            slot = score.masked_fill(~self.alive(at), FAR).argmin(1)
            node = self.of("node", at, slot)
            if level % SYNC_EVERY == 0 and not bool((node >= 0).any()):
                return at, slot
            at, level = torch.where(node >= 0, node, at), level + 1

    def grow(self, node: Tensor, slot: Tensor, children: Children, fresh: Tensor) -> None:
        """Expand the children in slots [Q] of nodes [Q] where `fresh`."""
        km = self.nodes["km"][self.rows, node] + self.of("hop", node, slot)
        hops, old = self.nodes["hops"][self.rows, node] + 1, self.of("node", node, slot)
        self.kids["node"][self.rows, node, slot] = torch.where(fresh, self.count, old)
        self.make(self.of("city", node, slot), node, slot, hops, km, children, fresh)

    def make(self, city, parent, slot, hops, km, children: Children, fresh: Tensor) -> None:
        """Note a node, its children, and the arrival among them."""
        m, self.count = self.count, self.count + 1
        if m == self.nodes["km"].shape[1]:
            self._double()
        km = km.masked_fill(~fresh, FAR)
        made = {"city": city, "parent": parent, "slot": slot, "hops": hops, "km": km}
        for name, value in made.items():
            self.nodes[name][:, m] = value
        city = children.city.clamp_min(0)
        reached = (km[:, None] + children.km).masked_fill(children.city < 0, FAR)
        arrives = city == self.goal[:, None]
        best = reached.masked_fill(~arrives, FAR).amin(1)
        self.end = torch.where(best < self.best, m, self.end)
        self.best = self.best.minimum(best)
        new = self._enter(city, reached, m)
        cost = (children.km + children.togo).masked_fill(~new, FAR)
        least = reached + self.world.straight(city, self.goal[:, None]) - ROUNDING
        still = cost.isfinite() & ~arrives & (hops + 1 < self.max_hops)[:, None]
        made = {"city": city, "hop": children.km, "prior": children.prior, "cost": cost}
        made |= {"least": least, "open": still, "latent": children.latent}
        for name, value in made.items():
            self.kids[name][:, m] = value

    def _enter(self, city: Tensor, reached: Tensor, m: int) -> Tensor:
        """Return which children [Q, C] of node m are the first, or sooner, to enter their cities.

        The children that entered them before are closed, with all that is below.
        """
        new = reached < self.entered.gather(1, city)
        self.entered = self.entered.scatter_reduce(1, city, reached, "amin")
        width = self.world.width
        own = m * width + torch.arange(width, device=city.device).expand_as(city)
        before = self.door.gather(1, city)
        closed = before.where(new & (before >= 0), own)  # one's own children are noted after this
        self.kids["open"].flatten(1).scatter_(1, closed, False)
        dump = self.door.shape[1]
        door = torch.cat([self.door, self.door[:, :1]], 1)
        self.door = door.scatter(1, city.where(new, dump), own)[:, :dump]
        return new

    def _double(self) -> None:
        for table in (self.nodes, self.kids):
            for name, old in table.items():
                more = torch.full_like(old, -1 if name == "node" else 0)
                table[name] = torch.cat([old, more], 1)

    def back_up(self, node: Tensor, ended: Tensor) -> None:
        """Carry costs and what is closed from nodes [Q] up to the roots, and a visit if `ended`."""
        level = 0
        while level % SYNC_EVERY or bool((node > 0).any()):
            on, parent = node > 0, self.nodes["parent"][self.rows, node]
            at = (self.rows, parent, self.nodes["slot"][self.rows, node])
            cost = self.kids["hop"][at] + self.of("cost", node).amin(1)
            self.kids["cost"][at] = torch.where(on, cost, self.kids["cost"][at])
            self.kids["visits"][at] += on & ended
            self.kids["open"][at] &= ~on | self.alive(node).any(1)
            node, level = parent.where(on, 0), level + 1

    def go_on(self, fresh: Tensor) -> Tensor:
        """Return where to dive on from the last nodes: their best child is open, [Q]."""
        last = torch.full_like(self.rows, self.count - 1)
        cost = self.of("cost", last)
        best = cost.masked_fill(~self.alive(last), FAR).amin(1)
        return fresh & best.isfinite() & (best <= cost.amin(1))

    def paths(self) -> Tensor:
        """Return ids [Q, hops + 1] of the best complete paths, else to a city near the target."""
        found, hops = self.best.isfinite(), self.nodes["hops"]
        far = self.world.straight(self.nodes["city"], self.goal[:, None])
        far = far.masked_fill(self.nodes["km"].isinf(), FAR)
        far[:, self.count :] = FAR
        node = torch.where(found, self.end, far.argmin(1))
        out = self.goal.new_full((len(self.rows), self.max_hops + 1), -1)
        end = (hops[self.rows, node] + 1).clamp(max=self.max_hops)
        out[self.rows, end] = torch.where(found, self.goal, -1)
        for _ in range(self.max_hops + 1):
            out[self.rows, hops[self.rows, node]] = self.nodes["city"][self.rows, node]
            node = self.nodes["parent"][self.rows, node]
        return out


@torch.inference_mode()
def beam_with_value(world: World, source, target, max_hops: int, *, width: int = 8) -> Found:
    """Keep the `width` best partial paths by km so far + km to go; return the best that arrives.

    A search ends when no partial path in progress is ranked before one that arrived. Where none
    arrives, the best partial path is returned.
    """
    if width < 1:
        raise ValueError(f"width is at least 1, not {width}")
    began = time.perf_counter()
    source, target, latent, alive, spent = enter(world, source, target)
    queries, goal = len(source), target[:, None]
    rows = torch.arange(queries, device=world.device)[:, None]
    # Of each partial path, best first: its city, latent and km, km to go, and all its cities.
    city, latent, togo = source[:, None], latent[:, None], world.straight(source, target)[:, None]
    km, way = torch.zeros_like(togo), source.new_full((queries, 1, max_hops + 1), -1)
    way[:, 0, 0] = source
    entered = km.new_full((queries, world.cities), FAR).scatter(1, source[:, None], 0.0)
    for hop in range(1, max_hops + 1):
        rank, beams = km + togo, city.shape[1]
        going = (city != goal) & alive[:, None]
        going &= rank < rank.masked_fill(city != goal, FAR).amin(1, keepdim=True)
        if (hop - 1) % SYNC_EVERY == 0 and not bool(going.any()):
            break
        goals = target.repeat_interleave(beams)
        children = world.expand(city.flatten(), goals, latent.flatten(0, 1))
        spent += (children.spent.view(queries, beams, 3) * going[..., None]).sum(1)
        child, child_togo = children.city.view(queries, -1), children.togo.view(queries, -1)
        reached = (km.flatten()[:, None] + children.km).view(queries, -1)
        real = (child >= 0) & going.repeat_interleave(world.width, 1)
        reached, entered = _enter(entered, child.clamp_min(0), reached.masked_fill(~real, FAR))
        alive = (reached + child_togo).isfinite().any(1)  # the others lead nowhere new, and stay
        stays = rank.masked_fill(going & alive[:, None], FAR)
        ranks, count = torch.cat([reached + child_togo, stays], 1), child.shape[1]
        rank, pick = ranks.topk(min(width, ranks.shape[1]), largest=False)
        parent = torch.where(pick < count, pick // world.width, pick - count)
        latent = torch.cat([children.latent.reshape(queries, count, -1), latent], 1)[rows, pick]
        city, km = (torch.cat(x, 1).gather(1, pick) for x in ((child, city), (reached, km)))
        togo = torch.cat([child_togo, togo], 1).gather(1, pick).masked_fill(rank.isinf(), FAR)
        way = way[rows, parent]
        way[:, :, hop] = torch.where(pick < count, city, way[:, :, hop])
    best = (km + togo + 1e9 * (city != goal)).argmin(1, keepdim=True)
    return found_of(way[rows, best][:, 0], spent, began)


def _enter(entered: Tensor, city: Tensor, km: Tensor) -> tuple[Tensor, Tensor]:
    """Return km [Q, C], infinite where a city was entered at no more before, or is now.

    `entered` [Q, V] is the least km at which each city was entered, returned after this.
    """
    km = km.masked_fill(km >= entered.gather(1, city), FAR)
    entered = entered.scatter_reduce(1, city, km, "amin")
    return km.masked_fill(km > entered.gather(1, city), FAR), entered
