"""A small project: everything the package writes, made in one folder, and read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from citypaths.data.dataset import Dataset, make_dataset, open_dataset
from citypaths.data.splits import Recipe, recipe_for
from citypaths.judging.ledger import load_results, record
from citypaths.map.cities import load_cities
from citypaths.map.graph import CityGraph, build_graph, load_graph
from citypaths.sizes import SIZES
from citypaths.training.checkpoints import load_history, load_trained
from citypaths.training.loop import TrainSettings, train

SETTINGS = TrainSettings(steps=6, batch_tokens=256, evaluations=3, save_seconds=0)
FILES = {
    "graph": "graph.npz",
    "shard": "spd/shard-0001.arrow",
    "manifest": "spd/manifest.json",
    "checkpoint": "model/checkpoint.safetensors",
    "history": "model/history.json",
    "ledger run": "reports/runs/03-x-tiny-seed0.json",
}


def recipe_of(graph: CityGraph) -> Recipe:
    return recipe_for(graph, train=2000, valid=100, test=400, seed=5)


def work(home: Path) -> None:
    """Make everything that is not there: graph, dataset, checkpoint, history, ledger."""
    if not (home / "graph.npz").exists():
        build_graph(load_cities(states=["TN"]), 30).save(home / "graph.npz")
    graph = load_graph(home / "graph.npz")
    dataset = make_dataset(graph, recipe_of(graph), home / "spd", 128)
    dataset.queries("test")
    train("rnn", dataset, home / "model", SETTINGS, {"width": 4})
    load_history(home / "model")
    for seed in (0, 1):
        row = {"regime": "checked", "family": "greedy", "method": "greedy", "success": 0.25}
        record("03-x", SIZES["tiny"], seed, [row], queries=7)


def graph_of(home: Path) -> tuple:
    graph = load_graph(home / "graph.npz")
    table = graph.cities.drop(columns="geometry").to_json()
    return graph.fingerprint, table, str(graph.cities.attrs), graph.order.tobytes()


@cache
def tennessee() -> CityGraph:
    return build_graph(load_cities(states=["TN"]), 30)


def dataset_of(home: Path) -> Dataset:
    return open_dataset(home / "spd", tennessee())


def rows_of(home: Path) -> list:
    dataset = dataset_of(home)
    rows = [dataset.shard(i) for i in range(len(dataset.shards))]
    arrays = [(r.source, r.target, r.mm, r.part, r.paths.tokens, r.paths.offsets) for r in rows]
    counts = [str(dataset.counts), str(dataset.recipe)]
    return [a.tobytes() for shard in arrays for a in shard] + counts


def model_of(home: Path) -> list:
    model = load_trained(home / "model", tennessee())
    return [(name, value.numpy().tobytes()) for name, value in model.state_dict().items()]


READERS: dict[str, Callable[[Path], Any]] = {
    "graph": graph_of,
    "shard": rows_of,
    "manifest": rows_of,
    "checkpoint": model_of,
    "history": lambda home: load_history(home / "model").to_json(),
    "ledger run": lambda home: (
        load_results().drop(columns=["commit", "dirty", "threads"]).to_json()
    ),
}


def everything(home: Path) -> list:
    """All that the project holds, as it is read."""
    return [reader(home) for reader in READERS.values()]


def contents(home: Path) -> dict[Path, bytes]:
    files = (p for p in home.rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files}


@contextmanager
def at_home(home: Path) -> Iterator[None]:
    """Let a folder be the project whose data and ledger are read and written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CITYPATHS_HOME", str(home))
        patch.setenv("CITYPATHS_REPORTS", str(home / "reports"))
        yield


@contextmanager
def project(home: Path) -> Iterator[None]:
    """Be at home in a folder, with one thread."""
    with at_home(home):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the last bits of sums depend on it
        yield
        torch.set_num_threads(threads)


def path_of(home: Path, kind: str) -> Path:
    (path,) = home.glob(FILES[kind])
    return path
