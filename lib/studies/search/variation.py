"""Variation of whole paths: cut, draw anew, splice, and judge what comes of it.

Paths are rows of ids padded with -1. All operators take many rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from citypaths.decoding import Scorer
from citypaths.decoding.decode import sample
from citypaths.map.paths import PAD, Paths
from citypaths.models.base import PathModel
from studies.search.spending import Spending


@dataclass
class Brood:
    """New paths of some queries, and what drawing them cost.

    Attributes:
        paths: int64 [A, C, W]; a row without a city is no path.
        drawn: int64 [A, C, .], the cities between which drawing has looked hops up.
        flops, lookups: float64 [A, C], of drawing.
    """

    paths: np.ndarray
    drawn: np.ndarray
    flops: np.ndarray
    lookups: np.ndarray


def lengths_of(paths: np.ndarray) -> np.ndarray:
    """Return the cities of each padded path [..., W], int64 [...]."""
    return (paths >= 0).sum(-1)


def padded_to(paths: Paths, width: int) -> np.ndarray:
    """Return ids [paths, width] of paths that are no longer, padded with -1."""
    ids = paths.padded()
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=PAD)


def last_of(paths: np.ndarray) -> np.ndarray:
    """Return the last city of each padded path [..., W]; -1 where there is none."""
    at = np.maximum(lengths_of(paths) - 1, 0)[..., None]
    return np.take_along_axis(paths, at, -1)[..., 0]


def arriving(paths: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return whether paths [A, C, W] go from source to target [A], bool [A, C]."""
    return (paths[..., 0] == source[:, None]) & (last_of(paths) == target[:, None])


def first_of_each(paths: np.ndarray) -> np.ndarray:
    """Return which of the rows [A, N, W] of a query equal none before them, bool [A, N]."""
    query = np.broadcast_to(np.arange(len(paths))[:, None, None], (*paths.shape[:2], 1))
    rows = np.ascontiguousarray(np.concatenate([query, paths], 2).reshape(-1, paths.shape[2] + 1))
    _, first = np.unique(rows.view((np.void, rows.itemsize * rows.shape[1])), return_index=True)
    flags = np.zeros(len(rows), bool)
    flags[first] = True
    return flags.reshape(paths.shape[:2])


def joined(
    head: np.ndarray, i: np.ndarray, middle: np.ndarray, tail: np.ndarray, j: np.ndarray
) -> np.ndarray:
    """Return head[:i] + middle + tail[j:] of rows [N, W], [N, .], [N, W]; none if that exceeds W.

    Args:
        i, j: int64 [N]; from `j` at or past its length a tail adds nothing.
    """
    size, column = lengths_of(middle), np.arange(head.shape[1])[None]
    end = i + size + np.maximum(lengths_of(tail) - j, 0)
    parts = (head, 0 * i), (middle, i), (tail, i + size - j)
    picked = [
        np.take_along_axis(rows, np.clip(column - shift[:, None], 0, rows.shape[1] - 1), 1)
        for rows, shift in parts
    ]
    out = np.where(column < (i + size)[:, None], picked[1], picked[2])
    out = np.where(column < i[:, None], picked[0], out)
    inside = (column < end[:, None]) & (end <= head.shape[1])[:, None]
    return np.where(inside, out, PAD)


def segments(lengths: np.ndarray, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions i < j in paths of `lengths` [N], by uniform numbers `chance` [2, N].

    i is any but the last, then j any after it; both are 0 in a path of one city.
    """
    i = (chance[0] * (lengths - 1)).astype(np.int64)
    j = i + 1 + (chance[1] * (lengths - 1 - i)).astype(np.int64)
    return i, np.minimum(j, np.maximum(lengths - 1, 0))


@njit(cache=True)
def shared_city(first, second, chance):
    """Return positions [N, 2] of a city in both rows [N, W] by `chance` [N], else -1.

    One of all pairs of positions, ends of either path left out, is chosen uniformly.
    """
    rows, width = first.shape
    at = np.full((rows, 2), -1, np.int64)
    pairs = np.empty((width * width, 2), np.int64)
    for r in range(rows):
        ends = (first[r] >= 0).sum() - 1, (second[r] >= 0).sum() - 1
        count = 0
        for i in range(1, ends[0]):
            for j in range(1, ends[1]):
                if first[r, i] == second[r, j]:
                    pairs[count, 0], pairs[count, 1] = i, j
                    count += 1
        if count:
            at[r, :] = pairs[int(chance[r] * count)]
    return at


def draw(
    model: PathModel, source: np.ndarray, target: np.ndarray, max_hops: int, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample paths for queries [N]; return ids [N, max_hops + 1], operations, look-ups [N]."""
    found = sample(model, source, target, max_hops, **options)
    return padded_to(found.paths, max_hops + 1), found.flops, found.lookups


def settle(
    brood: Brood,
    before: np.ndarray,
    query: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    scorer: Scorer,
    spending: Spending,
) -> np.ndarray:
    """Score new paths and pay for drawing and scoring them, in order.

    A path is scored if it arrives and equals none of `before` and none earlier in its brood. Where
    scoring or drawing looks hops up, a query pays once for a hop that is taken; hops that drawing
    tried and refused are paid each time.

    Args:
        before: int64 [A, P, W], the paths that the queries have. query: int64 [A].
        ends: source and target, int64 [A] each.

    Returns: energies, float64 [A, C]: infinity for a path that does not arrive, NaN for none, for
        one that is not new and for one that could not be paid.
    """
    fresh = first_of_each(np.concatenate([before, brood.paths], 1))[:, before.shape[1] :]
    fresh &= brood.paths[..., 0] >= 0
    judged = fresh & arriving(brood.paths, *ends)
    energy = np.where(fresh, np.inf, np.nan)
    flops, asked = brood.flops.copy(), np.zeros(fresh.shape)
    if judged.any():
        rows = brood.paths[judged]
        paths = Paths.from_padded(rows, lengths_of(rows))
        of_each = (np.broadcast_to(end[:, None], fresh.shape)[judged] for end in ends)
        energy[judged] = scorer.score(*of_each, paths)
        flops[judged] += scorer.flops(paths)
        asked[judged] = scorer.lookups(paths)
    lookups = brood.lookups + _first_looks(brood, asked, query, spending)
    return np.where(spending.pay(query, flops, lookups), energy, np.nan)


def _first_looks(
    brood: Brood, asked: np.ndarray, query: np.ndarray, spending: Spending
) -> np.ndarray:
    """What scoring adds to the look-ups of drawing, less the drawn hops known before, [A, C]."""
    scored = np.where((asked > 0)[..., None], brood.paths, PAD)
    gap = np.full((*asked.shape, 1), PAD)
    new = spending.unseen(query, np.concatenate([brood.drawn, gap, scored], 2))
    split = brood.drawn.shape[2]
    hops = np.maximum(lengths_of(brood.drawn) - 1, 0)
    return new[..., :split].sum(2) - hops + np.minimum(asked, new[..., split:].sum(2))
