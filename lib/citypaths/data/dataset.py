"""The Shortest Path Dataset: a recipe, and its shards on disk, or drawn anew when asked for.

A run that was killed goes on where it was, and any number of threads or workers write the same
bytes. `manifest.json` lists the shards with their counts and SHA-256.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numba import config, njit
from tqdm import tqdm

from citypaths.data.shards import MAKER, Rows, count_rows, make_shard, read_shard, sample_rows
from citypaths.data.splits import PARTS, TRAIN, Recipe
from citypaths.data.workers import Where, connected, spread
from citypaths.files import (
    DataFileError,
    lock,
    read_sealed,
    remove_parts,
    require_memory,
    sealed,
    write_bytes,
    write_json,
)
from citypaths.map.graph import CityGraph
from citypaths.map.shortest_paths import in_order

VERSION = 2
KEYS = {"version", "recipe", "targets_per_shard", "shards", "complete", "sha256"}
REMEDY = f"delete the folder; {MAKER} makes it"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A Shortest Path Dataset; shards are read and checked, or drawn, when asked for.

    Attributes:
        folder: where its files are; None for one without files.
        shards: the counts of each, and its file's name and SHA-256 or its targets.
    """

    folder: Path | None
    graph: CityGraph
    recipe: Recipe
    shards: list[dict]

    @property
    def counts(self) -> dict[str, int]:
        """Rows in each part, and tokens in all."""
        names = (*PARTS, "tokens")
        return {name: sum(shard[name] for shard in self.shards) for name in names}

    def shard(self, i: int) -> Rows:
        """Return shard i."""
        if self.folder is None:
            return sample_rows(self.graph, self.recipe, self.shards[i]["targets"])
        return read_shard(self.folder, self.shards[i])

    def rows(self, part: str) -> Rows:
        """Return all rows of "train", "valid" or "test" in memory."""
        wanted = PARTS.index(part)
        shards = (self.shard(i) for i in range(len(self.shards)))
        return Rows.concatenate([rows.take(rows.part == wanted) for rows in shards])

    def queries(self, part: str) -> tuple[Rows, np.ndarray]:
        """Return the rows of a part and which are contained in training paths."""
        rows = self.rows(part)
        return rows, self.contained(rows)

    def contained(self, rows: Rows) -> np.ndarray:
        """Return whether each query lies inside a training path, either direction, bool [rows].

        A sub-path of a shortest path is itself a shortest path: a contained query was trained on.

        Raises:
            MemoryError: a bit for each pair of cities does not fit.
        """
        n = len(self.graph)
        size = (n * n + 7) // 8
        threads = min(config.NUMBA_NUM_THREADS, len(self.shards)) if size <= 2**30 else 1
        require_memory(threads * size, f"a bit for each pair of {n:,} cities", "take fewer cities")

        def cover(first: int) -> np.ndarray:
            bits = np.zeros(size, np.uint8)
            for i in range(first, len(self.shards), threads):
                shard = self.shard(i)
                _cover(bits, n, shard.paths.tokens, shard.paths.offsets, shard.part)
            return bits

        with ThreadPoolExecutor(threads) as pool:
            covered, *others = pool.map(cover, range(threads))
        for bits in others:
            np.bitwise_or(covered, bits, out=covered)
        source, target = rows.source.astype(np.int64), rows.target.astype(np.int64)
        key = np.minimum(source, target) * n + np.maximum(source, target)
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


def live_dataset(graph: CityGraph, recipe: Recipe, targets_per_shard: int = 256) -> Dataset:
    """Return the dataset of `recipe` without files; its rows are counted once.

    The rows, their order and so the batches are those of the same recipe on disk.

    Raises:
        ValueError: the recipe belongs to another graph, or `targets_per_shard` is not positive.
    """

    def count(name: str, start: int, stop: int) -> dict:
        mine = np.arange(start, stop)
        return count_rows(sample_rows(graph, recipe, mine, threads=1)) | {"targets": mine}

    spans = _spans(graph, recipe, targets_per_shard)
    return Dataset(None, graph, recipe, list(in_order(count, spans)))


def _spans(graph: CityGraph, recipe: Recipe, targets: int) -> list[tuple[str, int, int]]:
    """The name of each shard, its first target and the one after its last."""
    if targets < 1:
        raise ValueError(f"targets_per_shard is a positive number, not {targets}")
    if recipe.graph != graph.fingerprint:
        raise ValueError(f"the recipe is for graph {recipe.graph[:12]}, not {graph!r}")
    starts = enumerate(range(0, len(graph), targets))
    return [(f"shard-{i:04d}.arrow", a, min(a + targets, len(graph))) for i, a in starts]


def make_dataset(
    graph: CityGraph,
    recipe: Recipe,
    folder: Path,
    targets_per_shard: int = 256,
    client: Where = None,
) -> Dataset:
    """Write the dataset of `recipe` into `folder`, or finish what an interrupted run began.

    The bytes are the same wherever the shards are made; only this process writes them.

    Args:
        client: None makes the shards in this process; a `distributed.Client`, a scheduler's
            address or "local" (workers on this machine, one a core) makes them on Dask workers.

    Raises:
        DataFileError: the folder holds another recipe's shards, or a damaged manifest.
        ValueError: the recipe belongs to another graph, or `targets_per_shard` is not positive.
        ClusterError, ImportError: the cluster cannot be used. What a worker raises is raised here;
            the finished shards stay.
    """
    spans = _spans(graph, recipe, targets_per_shard)
    with lock(folder / ".lock"):
        manifest = _begin(folder, recipe, targets_per_shard)
        made = {name for name in manifest["shards"] if (folder / name).exists()}
        jobs = [(name, recipe, *span) for name, *span in spans if name not in made]
        label = f"shortest paths ({recipe.split} split)"
        bar = tqdm(desc=label, unit="shard", total=len(spans), initial=len(made))
        with bar, connected(client if jobs else None) as cluster:
            if cluster:
                finished = spread(cluster, make_shard, jobs, graph)
            else:
                finished = in_order(partial(make_shard, graph), jobs)
            for name, content, entry in finished:
                write_bytes(folder / name, content)
                manifest["shards"][name] = entry
                write_json(folder / "manifest.json", sealed(manifest))
                bar.update()
        if not manifest["complete"]:
            write_json(folder / "manifest.json", sealed(manifest | {"complete": True}))
    return open_dataset(folder, graph)


def _begin(folder: Path, recipe: Recipe, targets_per_shard: int) -> dict:
    remove_parts(folder)
    head = {"version": VERSION, "recipe": recipe.to_json(), "targets_per_shard": targets_per_shard}
    if not (folder / "manifest.json").exists():
        manifest = head | {"shards": {}, "complete": False}
        write_json(folder / "manifest.json", sealed(manifest))
        return manifest
    manifest, _ = _read_manifest(folder)
    if {key: manifest[key] for key in head} != head:
        raise DataFileError(f"{folder} holds a dataset of another recipe: {REMEDY}")
    return manifest


def _read_manifest(folder: Path) -> tuple[dict, Recipe]:
    path = folder / "manifest.json"
    manifest = read_sealed(path, MAKER)
    try:
        recipe = Recipe(**manifest.get("recipe", {}))
    except (TypeError, ValueError) as error:
        raise DataFileError(f"{path} holds no recipe ({error}): {REMEDY}") from None
    if set(manifest) != KEYS or not isinstance(manifest["shards"], dict):
        raise DataFileError(f"{path} is no dataset manifest: {REMEDY}")
    if manifest["version"] != VERSION:
        raise DataFileError(f"{path} is of version {manifest['version']}, not {VERSION}: {REMEDY}")
    return manifest, recipe


def open_dataset(folder: Path, graph: CityGraph) -> Dataset:
    """Open a finished dataset.

    Raises:
        DataFileError: missing, unfinished, of another graph or version, or with shards missing.
    """
    manifest, recipe = _read_manifest(folder)
    if recipe.graph != graph.fingerprint:
        raise DataFileError(f"{folder} was made from another graph ({recipe.graph[:12]}): {REMEDY}")
    missing = [name for name in manifest["shards"] if not (folder / name).exists()]
    if missing or not manifest["complete"]:
        what = f"lacks {missing[0]}" if missing else "is unfinished"
        raise DataFileError(f"{folder} {what}: run {MAKER} again")
    shards = [{"name": name} | entry for name, entry in sorted(manifest["shards"].items())]
    return Dataset(folder, graph, recipe, shards)
