"""Sub-goal trees: a network names the middle of every segment, and a model of paths fills them.

Waypoints come from coarse to fine, twice as many segments in each round (Jurgenson et al. 2020).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths import decoding
from citypaths.data.batches import IGNORE, Batch
from citypaths.decoding.decode import evaluating
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found, Paths
from citypaths.models.base import CityInput, Head, Network, PathModel, register

LAYERS = 2  # hidden layers


@register("conductor", writes=False)
class Conductor(Network):
    """The middle city (by hops) of the path between two cities, or that they are adjacent.

    A feed-forward network of the two ends and of the city nearest to half way. It learns from one
    random part of a path for every hop: parts of shortest paths are shortest paths. Their lengths
    are spread evenly on a logarithmic scale, as halving meets them. Divide and conquer over
    sub-goals: Jurgenson et al. 2020 (sub-goal trees).

    Args:
        graph: decides the vocabulary and the coordinates.
        width: of each city's vector; hidden layers are twice as wide.
    """

    def __init__(self, graph: CityGraph, *, width: int = 128) -> None:
        super().__init__()
        self.cities, self.width = len(graph), width
        self.inputs = CityInput(graph, width)
        sphere = torch.as_tensor(graph.sphere)
        sphere = (sphere - sphere.mean(0)) / sphere.std().clamp(min=1e-9)
        self.register_buffer("place", sphere.float(), persistent=False)
        self.first = nn.Linear(3 * width + 7, 2 * width)
        self.layers = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in range(LAYERS - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(2 * width) for _ in range(LAYERS))
        self.head = Head(2 * width, self.cities, tied=self.inputs.embedding)
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


def conduct(
    conductor: Conductor,
    filler: PathModel | None,
    source,
    target,
    max_hops: int,
    *,
    rounds: int,
) -> list[Found]:
    """Fill 1, 2, 4, ... segments a query between waypoints; return each round's paths.

    Round 0 is the filler alone, greedily. Each round asks the conductor for the middle
    of every segment and fills both halves, each a query of its own. A segment that the conductor
    calls adjacent becomes one hop and is not split again. A filler that misses a waypoint goes on
    from there all the same. Costs are cumulative: a round includes the rounds before it.

    Args:
        filler: a model of paths, or None for waypoints alone: adjacent ones then make a path.
        source, target: ids [n]. max_hops: of a segment, and of the whole path, which is cut.
        rounds: after round 0; the result has one more.

    Raises:
        ValueError: negative rounds, `max_hops` below 1, or queries that do not pair up.
    """
    if rounds < 0 or max_hops < 1:
        raise ValueError(f"rounds are 0 or more and max_hops at least 1, not {rounds}, {max_hops}")
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    began, found = time.perf_counter(), []
    segments = Segments.begin(source, target)
    for done in range(rounds + 1):
        changed = segments.split(conductor) if done else np.ones(len(source), bool)
        segments.fill(filler, changed, max_hops)
        found.append(segments.found(target, max_hops, time.perf_counter() - began))
    return found


def repair(
    filler: PathModel, found: Found, source, target, max_hops: int, checked_by: CityGraph
) -> Found:
    """Look up every hop of paths that were found; fill in those that are no edges, checked.

    Args:
        source, target: ids [n]. max_hops: of a filling, and of the whole path, which is cut.

    Returns: paths whose costs include what `found` had cost.
    """
    began, target = time.perf_counter(), np.asarray(target, np.int64)
    segments = Segments.of(found, np.asarray(source, np.int64))
    segments.fill(filler, np.ones(len(segments.query), bool), max_hops, checked_by)
    return segments.found(target, max_hops, found.seconds + time.perf_counter() - began)


@dataclass
class Segments:
    """The segments of all queries, in order along each path.

    Attributes:
        query, start, end: int64 [M]. whole: bool [M], one hop (or none). paths: M fills.
        flops, lookups: float64 [queries], so far.
    """

    query: np.ndarray
    start: np.ndarray
    end: np.ndarray
    whole: np.ndarray
    paths: Paths
    flops: np.ndarray
    lookups: np.ndarray

    @classmethod
    def begin(cls, source: np.ndarray, target: np.ndarray) -> Segments:
        """One segment a query."""
        count, none = len(source), np.zeros(len(source))
        paths = Paths.from_padded(source[:, None], np.ones(count, np.int64))
        args = (np.arange(count), source, target, source == target, paths)
        return cls(*args, none, none.copy())

    @classmethod
    def of(cls, found: Found, source: np.ndarray) -> Segments:
        """One segment a hop of each path; a path without a hop is one that stays at its source."""
        ids = found.paths.padded()
        ids = np.pad(ids, ((0, 0), (0, max(0, 2 - ids.shape[1]))), constant_values=PAD)
        ids[:, 0] = source
        ids[:, 1] = np.where(ids[:, 1] == PAD, source, ids[:, 1])
        query, at = np.nonzero(ids[:, 1:] != PAD)
        start, end = ids[query, at], ids[query, at + 1]
        paths = Paths.from_padded(start[:, None], np.ones(len(start), np.int64))
        args = (query, start, end, np.ones(len(start), bool), paths)
        return cls(*args, found.flops.copy(), found.lookups.copy())

    def split(self, conductor: Conductor) -> np.ndarray:
        """Halve what is not one hop; return which of the segments there are now need filling."""
        asked = np.flatnonzero(~self.whole)
        middle = np.full(len(self.query), conductor.cities)
        middle[asked] = middles(conductor, self.start[asked], self.end[asked])
        np.add.at(self.flops, self.query[asked], conductor.flops_per_step())
        halved, old = middle < conductor.cities, self.whole
        self.whole = ~halved
        parts = np.repeat(np.arange(len(halved)), np.where(halved, 2, 1))
        second = np.diff(parts, prepend=-1) == 0
        self.start = np.where(second, middle[parts], self.start[parts])
        self.end = np.where(halved[parts] & ~second, middle[parts], self.end[parts])
        self.query, self.whole = self.query[parts], self.whole[parts]
        self.paths = self.paths.take(parts)
        return ~old[parts]

    def fill(
        self,
        filler: PathModel | None,
        which: np.ndarray,
        max_hops: int,
        checked_by: CityGraph | None = None,
    ) -> None:
        """Find paths for the segments in `which`, bool [M]; the others keep theirs.

        A single hop that is checked, and is no edge, is left to the filler.
        """
        direct = which & (self.whole | (filler is None))
        if filler is not None and checked_by is not None:
            asked = np.flatnonzero(direct & (self.start != self.end))
            np.add.at(self.lookups, self.query[asked], 1)
            direct[asked] = checked_by.is_edge(self.start[asked], self.end[asked])
        hops, rows = np.flatnonzero(direct), np.flatnonzero(which & ~direct)
        ends = np.stack([self.start[hops], self.end[hops]], 1)
        parts = [self.paths, Paths.from_padded(ends, 1 + (ends[:, 0] != ends[:, 1]))]
        if filler is not None:
            ends = self.start[rows], self.end[rows]
            found = decoding.greedy(filler, *ends, max_hops, checked_by=checked_by)
            np.add.at(self.flops, self.query[rows], found.flops)
            np.add.at(self.lookups, self.query[rows], found.lookups)
            parts.append(found.paths)
        order = np.arange(len(self.paths))
        changed = np.concatenate([hops, rows])
        order[changed] = len(order) + np.arange(len(changed))
        self.paths = Paths.concatenate(parts).take(order)

    def found(self, target: np.ndarray, max_hops: int, seconds: float) -> Found:
        """Return each query's segments end to end, up to its target, and what was spent."""
        costs = self.flops.copy(), self.lookups.copy(), np.zeros(len(target))
        return Found(self.joined(target, max_hops), *costs, seconds)

    def joined(self, target: np.ndarray, max_hops: int) -> Paths:
        """Join the segments; a waypoint that its fill misses is put in, a target is not."""
        ids, lengths = self.paths.padded(), self.paths.lengths
        last = np.diff(self.query, append=-1) != 0
        first = np.diff(self.query, prepend=-1) != 0
        missed = ids[np.arange(len(ids)), lengths - 1] != self.end
        ids = np.concatenate([ids, np.where(missed & ~last, self.end, PAD)[:, None]], 1)
        ids[~first, 0] = PAD
        query = np.broadcast_to(self.query[:, None], ids.shape)[ids != PAD]
        tokens = ids[ids != PAD]
        offsets = np.searchsorted(query, np.arange(len(target) + 1))
        place = np.arange(len(tokens)) - offsets[query]
        hits = np.append(0, np.cumsum(tokens == target[query]))
        kept = (hits[:-1] == hits[offsets[query]]) & (place <= max_hops)
        lengths = np.bincount(query[kept], minlength=len(target))
        return Paths(tokens[kept], np.append(0, np.cumsum(lengths)))


def middles(conductor: Conductor, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the most probable middle of each pair [N], never an end; V means adjacent."""
    chosen = []
    with evaluating(conductor) as device:
        ends = torch.as_tensor(np.stack([source, target]), device=device)
        for a, b in zip(*(part.split(4096) for part in ends), strict=True):
            logits = conductor(a, b)
            logits.scatter_(1, torch.stack([a, b], 1), -torch.inf)
            chosen.append(logits.argmax(-1))
    return torch.cat(chosen).cpu().numpy()
