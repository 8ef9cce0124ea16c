"""Conducting: waypoints from a conductor, more in each round, and the paths between them filled."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from citypaths import decoding
from citypaths.map.graph import CityGraph
from citypaths.map.paths import PAD, Found, Paths
from citypaths.models.base import PathModel
from studies.refinement.conductor import Conductor


def conduct(
    conductor: Conductor,
    filler: PathModel | None,
    source,
    target,
    max_hops: int,
    *,
    rounds: int = 3,
    **options: Any,
) -> list[Found]:
    """Fill 1, 2, 4, ... segments a query between waypoints; return each round's paths.

    Round 0 is the filler alone, by `search.greedy`. Each round asks the conductor for the middle
    of every segment and fills both halves, each a query of its own. A segment that the conductor
    calls adjacent becomes one hop and is not split again. A filler that misses a waypoint goes on
    from there all the same. Costs are cumulative: a round includes the rounds before it. Sub-goal
    trees: Jurgenson et al. 2020.

    Args:
        filler: a model of paths, or None for waypoints alone: adjacent ones then make a path.
        source, target: ids [n]. max_hops: of a segment, and of the whole path, which is cut.
        rounds: after round 0; the result has one more. options: for `search.greedy`.

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
        segments.fill(filler, changed, max_hops, options)
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
    segments.fill(filler, np.ones(len(segments.query), bool), max_hops, {"checked_by": checked_by})
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
        self, filler: PathModel | None, which: np.ndarray, max_hops: int, options: dict[str, Any]
    ) -> None:
        """Find paths for the segments in `which`, bool [M]; the others keep theirs.

        A single hop that is checked, and is no edge, is left to the filler.
        """
        direct = which & (self.whole | (filler is None))
        if filler is not None and (graph := options.get("checked_by")) is not None:
            asked = np.flatnonzero(direct & (self.start != self.end))
            np.add.at(self.lookups, self.query[asked], 1)
            direct[asked] = graph.is_edge(self.start[asked], self.end[asked])
        hops, rows = np.flatnonzero(direct), np.flatnonzero(which & ~direct)
        ends = np.stack([self.start[hops], self.end[hops]], 1)
        parts = [self.paths, Paths.from_padded(ends, 1 + (ends[:, 0] != ends[:, 1]))]
        if filler is not None:
            found = decoding.greedy(filler, self.start[rows], self.end[rows], max_hops, **options)
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
    device, was_training = next(conductor.parameters()).device, conductor.training
    ends = torch.as_tensor(np.stack([source, target]), device=device)
    chosen = []
    conductor.eval()
    with torch.inference_mode():
        for a, b in zip(*(part.split(4096) for part in ends), strict=True):
            logits = conductor(a, b)
            logits.scatter_(1, torch.stack([a, b], 1), -torch.inf)
            chosen.append(logits.argmax(-1))
    conductor.train(was_training)
    return torch.cat(chosen).cpu().numpy()
