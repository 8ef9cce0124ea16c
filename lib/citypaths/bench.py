"""Speed, as ratios against a peer measured in the same run (`make bench`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import networkx as nx
import numpy as np
import torch
from scipy.sparse.csgraph import dijkstra

from citypaths import search
from citypaths.cities import load_cities
from citypaths.graph import CityGraph, Orientation, build_graph
from citypaths.models import build
from citypaths.shortest_paths import shortest_path_trees
from citypaths.survey import draw_sample


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the median wall time of `call` after one warm-up."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def bench_trees(graph: CityGraph, trees: int = 128) -> list[tuple[str, float, float]]:
    """Time a tree of all sources for a random target: ours, scipy, networkx (distances only)."""
    targets = np.sort(np.random.default_rng(0).choice(len(graph), trees, replace=False))
    reverse = graph.sparse().T.tocsr()
    digraph = graph.to_networkx().reverse(copy=False)

    def with_networkx() -> None:
        nx.single_source_dijkstra_path_length(digraph, int(targets[trees // 2]))

    few = targets[:: trees // 16]
    ours = seconds(lambda: shortest_path_trees(graph, targets)) / trees
    scipy = seconds(lambda: dijkstra(reverse, indices=few, return_predecessors=True)) / len(few)
    return [
        ("ours", ours, ours / ours),
        ("scipy", scipy, scipy / ours),
        ("networkx", (slow := seconds(with_networkx, 1)), slow / ours),
    ]


def bench_decoding(graph: CityGraph, queries: int = 256) -> list[tuple[str, float, float]]:
    """Time greedy decoding of a query: batched, and one query at a time."""
    torch.manual_seed(0)
    model = build("rnn", graph, width=128, tied=True)
    pairs = draw_sample(graph, queries).pairs[:queries]
    batched = seconds(lambda: search.greedy(model, *pairs.T, 30)) / len(pairs)
    single = seconds(lambda: search.greedy(model, *pairs[:16].T, 30, batch=1)) / 16
    return [("batched", batched, 1.0), ("one by one", single, single / batched)]


def main() -> None:
    """Print Markdown tables of seconds and of ratios to our own."""
    nation = load_cities()
    orientations: tuple[Orientation, ...] = ("eastward", "two_way")
    for orientation in orientations:
        graph = build_graph(nation, 75, orientation)
        _print(f"shortest-path tree, {graph}", "ms a tree", bench_trees(graph))
    small = build_graph(load_cities(states=["NC"]), 30)
    _print(f"greedy decoding, gru-128, {small}", "ms a query", bench_decoding(small))


def _print(title: str, unit: str, rows: list[tuple[str, float, float]]) -> None:
    lines = [f"\n{title}\n", f"| | {unit} | ratio |", "|---|---|---|"]
    lines += [f"| {name} | {1000 * value:.3f} | {ratio:.1f} |" for name, value, ratio in rows]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
