"""Speed of the engine: trees, paths and datasets of the contiguous United States."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import networkx as nx
import numpy as np
import psutil
from scipy.sparse.csgraph import dijkstra

from bench import Line, once, seconds
from citypaths.data.batches import Batches
from citypaths.data.dataset import Dataset, make_dataset
from citypaths.data.shards import count_rows, encode_shard, sample_rows
from citypaths.data.splits import PARTS, Recipe, pair_drawer
from citypaths.files import write_bytes
from citypaths.map.cities import load_cities
from citypaths.map.graph import CityGraph, Orientation, build_graph, load_graph
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import Block, in_blocks, over_blocks, shortest_path_trees

NATIONAL_PATHS = 10_000_000


def copy_bandwidth(size: int = 2**28) -> float:
    """Return bytes read and written a second by a copy between two arrays in memory."""
    source, sink = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return 2 * size / seconds(lambda: np.copyto(sink, source), 5)


def national(orientation: Orientation = "eastward") -> CityGraph:
    """Return the contiguous United States at 75 km."""
    return build_graph(load_cities(), 75, orientation)


def bench_trees() -> list[Line]:
    """Time a tree with next cities for random targets: ours, scipy and networkx."""
    return _tree_lines("eastward") + _tree_lines("two_way")


def _tree_lines(orientation: Orientation, trees: int = 512) -> list[Line]:
    graph, name = national(orientation), f"tree, {orientation}"
    targets = np.sort(np.random.default_rng(0).choice(len(graph), trees, replace=False))
    few, one = targets[:: trees // 32], int(targets[trees // 2])
    reverse = graph.sparse().T.tocsr()
    ours = seconds(lambda: shortest_path_trees(graph, targets), 9) / trees
    scipy = seconds(lambda: dijkstra(reverse, indices=few, return_predecessors=True)) / len(few)
    digraph = graph.to_networkx().reverse(copy=False)  # last: gigabytes in small pieces
    slow = seconds(lambda: nx.dijkstra_predecessor_and_distance(digraph, one), 1)
    lines = [(f"{name}, ours", f"{1000 * ours:.3f} ms", "1")]
    lines += [(f"{name}, scipy", f"{1000 * scipy:.2f} ms", f"{scipy / ours:.1f}")]
    lines += [(f"{name}, networkx", f"{1000 * slow:,.0f} ms", f"{slow / ours:,.0f}")]
    return lines


def bench_paths() -> list[Line]:
    """Time all national trees and 10 million sampled paths as tokens in memory, and scipy's trees.

    In a process of its own, for its memory; the fastest of three, since a virtual machine gives
    memory slowly where it was never touched.
    """
    graph = national()
    with tempfile.TemporaryDirectory() as folder:
        graph.save(path := Path(folder) / "graph.npz")
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            times, paths, tokens, resident = fresh.submit(_all_paths, path).result()
    ours = min(times)
    few = np.arange(0, len(graph), len(graph) // 64)
    reverse = graph.sparse().T.tocsr()
    one = seconds(lambda: dijkstra(reverse, indices=few, return_predecessors=True)) / len(few)
    scipy = one * len(graph)
    cells = len(graph) ** 2
    moved = cells * 10 + cells * 2 + tokens * 2  # tables written, next cities read, tokens written
    floor = moved / copy_bandwidth()
    count = f"{paths / 1e6:.1f} M paths, {tokens / 1e6:.0f} M tokens"
    spread = f"{ours:.2f} s ({max(times):.2f} at worst)"
    return [
        (f"all national trees and {count}, ours", spread, "1"),
        ("all national trees alone, scipy (64 measured)", f"{scipy:.1f} s", f"{scipy / ours:.1f}"),
        ("floor: bytes over copy bandwidth", f"{floor:.2f} s", f"{floor / ours:.2f}"),
        ("resident with all paths in memory", f"{resident / 2**30:.2f} GiB", ""),
    ]


def _all_paths(path: Path) -> tuple[list[float], int, int, int]:
    graph = load_graph(path)
    draw = pair_drawer(Recipe(graph.fingerprint, 0, "pair", NATIONAL_PATHS / 196.83e6, 0, 0), graph)

    def sampled(block: Block) -> Paths:
        source, tree, _ = draw(block.targets, block.next_city)
        return block.follow(source, tree)

    blocks = in_blocks(np.arange(len(graph), dtype=np.int32))
    times, found = [], list(over_blocks(graph, blocks[::40], sampled))  # compiles
    for _ in range(3):
        found.clear()
        found, took = once(lambda: list(over_blocks(graph, blocks, sampled)))
        times.append(took)
    resident = psutil.Process().memory_info().rss
    return times, sum(map(len, found)), sum(len(paths.tokens) for paths in found), resident


def bench_dataset(paths: int = NATIONAL_PATHS, queries: float = 1e6) -> list[Line]:
    """Time writing national paths as shards, and flagging a million test pairs as contained."""
    graph = national()
    rates = paths / 196.83e6, 0.0, queries / 196.83e6
    recipe = Recipe(graph.fingerprint, 0, "pair", *rates)
    with tempfile.TemporaryDirectory() as folder:
        disk = _disk_rate(Path(folder) / "plain")
        dataset, wrote = once(lambda: make_dataset(graph, recipe, Path(folder) / "spd"))
        sizes = sum(path.stat().st_size for path in dataset.folder.glob("*.arrow"))
        rows = dataset.rows("test")
        share, flagged = once(lambda: dataset.contained(rows).mean())
        middle, one = dataset.shard(len(dataset.shards) // 2), Path(folder) / "one"
        single = seconds(lambda: write_bytes(one, encode_shard(middle, len(graph))))
        lines = _batch_lines(dataset)
    held, parts = _held(dataset.counts), sum(dataset.counts[p] for p in PARTS)
    alone = _held(count_rows(middle)) / single
    return [
        (f"{parts / 1e6:.1f} M national paths made and written", f"{wrote:.1f} s", ""),
        ("as rows, before compression", _rate(held, wrote), f"{held / wrote / disk:.2f}"),
        ("as files", _rate(sizes, wrote), f"{sizes / wrote / disk:.2f}"),
        ("rows in memory to a shard, one core", f"{alone / 1e6:.0f} MB/s", f"{alone / disk:.2f}"),
        ("the disk, written in sequence", f"{disk / 1e6:.0f} MB/s", "1"),
        (f"contained or not, {len(rows):,} test pairs", f"{flagged:.1f} s ({share:.0%} are)", ""),
        *lines,
    ]


def _held(counts: dict[str, int]) -> int:
    """Bytes of rows as they are stored, but not compressed."""
    return 2 * counts["tokens"] + 25 * sum(counts[part] for part in PARTS)


def _rate(size: int, took: float) -> str:
    return f"{size / 1e6:.0f} MB: {size / took / 1e6:.0f} MB/s"


def _disk_rate(path: Path, size: int = 2**29) -> float:
    """Bytes a second of a file written in sequence and flushed."""
    block = np.random.default_rng(0).bytes(2**24)

    def write() -> None:
        with open(path, "wb") as file:
            for _ in range(size // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    _, took = once(write)
    path.unlink()
    return size / took


def _batch_lines(dataset: Dataset, batches: int = 500) -> list[Line]:
    """Paths a second of one core: gathered into shuffled batches, and sampled again instead."""
    stream, rates = iter(Batches(dataset, 4096)), []
    next(stream)
    for _ in range(9):
        some = islice(stream, batches)
        paths, took = once(lambda s=some: sum(map(len, s)), time.thread_time)
        rates.append(paths / took)
    gathered = float(np.median(rates))
    targets = np.arange(0, len(dataset.graph), 80)
    again, took = once(lambda: sample_rows(dataset.graph, dataset.recipe, targets, threads=1))
    sampled = len(again) / took
    return [
        ("paths into random batches of 4,096 tokens, a core", f"{gathered / 1e6:.2f} M/s", "1"),
        ("paths sampled anew, a core", f"{sampled / 1e6:.2f} M/s", f"{sampled / gathered:.2f}"),
    ]
