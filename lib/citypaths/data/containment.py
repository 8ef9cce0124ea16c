"""Which queries lie inside training paths: a random test set has often been trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import get_num_threads, njit

from citypaths.data.shards import Rows
from citypaths.data.splits import TRAIN
from citypaths.files import require_memory


def contained(cities: int, shards: int, read: Callable[[int], Rows], rows: Rows) -> np.ndarray:
    """Return whether each query lies inside a training path, either direction, bool [rows].

    A sub-path of a shortest path is itself a shortest path: a contained query was trained on.

    Args:
        cities: of the graph. shards: how many. read: returns the rows of shard i.
        rows: the queries, millions of them if need be.

    Raises:
        MemoryError: a bit for each pair of cities does not fit.
    """
    size = (cities * cities + 7) // 8
    threads = min(get_num_threads(), shards) if size <= 2**30 else 1
    need, what = threads * size, f"a bit for each pair of {cities:,} cities"
    require_memory(need, what, "take fewer cities")

    def cover(first: int) -> np.ndarray:
        bits = np.zeros(size, np.uint8)
        for i in range(first, shards, threads):
            shard = read(i)
            _cover(bits, cities, shard.paths.tokens, shard.paths.offsets, shard.part)
        return bits

    with ThreadPoolExecutor(threads) as pool:
        covered, *others = pool.map(cover, range(threads))
    for bits in others:
        np.bitwise_or(covered, bits, out=covered)
    source, target = rows.source.astype(np.int64), rows.target.astype(np.int64)
    key = np.minimum(source, target) * cities + np.maximum(source, target)
    return (covered[key >> 3] >> (key & 7).astype(np.uint8) & 1).astype(bool)


@njit(cache=True, nogil=True)
def _cover(bits, n, tokens, offsets, part):
    """Set the bit of every pair inside a training path.

    Paths to one target form a tree: from a city that an earlier one visited, all is done.
    """
    visited, stamp, target = np.zeros(n, np.int32), 0, -1
    for p in range(len(part)):
        if part[p] != TRAIN:
            continue
        last = offsets[p + 1] - 1
        if tokens[last] != target:
            stamp, target = stamp + 1, tokens[last]
        for i in range(offsets[p], last):
            a = np.int64(tokens[i])
            if visited[a] == stamp:
                break
            visited[a] = stamp
            for j in range(i + 1, last + 1):
                b = np.int64(tokens[j])
                key = a * n + b if a < b else b * n + a
                bits[key >> 3] |= np.uint8(1 << (key & 7))
