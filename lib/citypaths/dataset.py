"""The Shortest Path Dataset: a recipe, and its shards on disk as Arrow IPC files.

One shard holds the sampled rows of a block of targets and depends on nothing else, so a run that
was killed goes on where it was, and any number of workers write the same bytes. `manifest.json`
lists the shards with their SHA-256. Columns: source, target, mm (length in whole millimetres),
part (0 train, 1 valid, 2 test), path (list of city ids, source first).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numba import get_num_threads, njit
from tqdm import tqdm

from citypaths.files import (
    DataFileError,
    atomic_write,
    lock,
    npz_fault,
    read_json,
    read_sealed,
    remove_parts,
    sealed,
    sha256,
    write_json,
)
from citypaths.graph import CityGraph
from citypaths.memory import require_memory
from citypaths.paths import Paths
from citypaths.shortest_paths import Block, in_blocks, over_blocks
from citypaths.splits import PARTS, TEST, TRAIN, VALID, Recipe, admit, pair_drawer
from citypaths.workers import Where, connected, spread_over_graph

VERSION = 2
MAKER = "notebook 02-shortest-path-dataset"
REMEDY = f"delete the folder; {MAKER} makes it"


@dataclass(frozen=True, eq=False)
class Rows:
    """Queries with their shortest paths.

    Attributes:
        source, target: integers [rows]. mm: int64 [rows], optimal length in whole millimetres.
        part: uint8 [rows]. paths: Paths [rows].
    """

    source: np.ndarray
    target: np.ndarray
    mm: np.ndarray
    part: np.ndarray
    paths: Paths

    def __len__(self) -> int:
        return len(self.source)

    @property
    def km(self) -> np.ndarray:
        """Optimal length in km, float64 [rows]."""
        return self.mm / 1e6

    @property
    def hops(self) -> np.ndarray:
        """Hops of the shortest path, int64 [rows]."""
        return self.paths.lengths - 1

    def take(self, rows: np.ndarray) -> Rows:
        """Return the rows at `rows` (positions or a boolean mask)."""
        arrays = (a[rows] for a in (self.source, self.target, self.mm, self.part))
        return Rows(*arrays, self.paths.take(rows))

    @classmethod
    def concatenate(cls, parts: list[Rows]) -> Rows:
        """Join several into one."""
        arrays = (
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("source", "target", "mm", "part")
        )
        return cls(*arrays, Paths.concatenate([p.paths for p in parts]))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A finished Shortest Path Dataset on disk; shards are read and checked when asked for."""

    folder: Path
    graph: CityGraph
    recipe: Recipe
    shards: list[dict]

    @property
    def counts(self) -> dict[str, int]:
        """Rows in each part, and tokens in all."""
        names = (*PARTS, "tokens")
        return {name: sum(shard[name] for shard in self.shards) for name in names}

    def shard(self, i: int) -> Rows:
        """Read shard i, checking its SHA-256."""
        return _read_shard(self.folder, self.shards[i])

    def rows(self, part: str) -> Rows:
        """Return all rows of "train", "valid" or "test" in memory."""
        wanted = PARTS.index(part)
        shards = (self.shard(i) for i in range(len(self.shards)))
        return Rows.concatenate([rows.take(rows.part == wanted) for rows in shards])

    def contained(self, rows: Rows) -> np.ndarray:
        """Return whether each query lies inside a training path, either direction, bool [rows].

        A sub-path of a shortest path is itself a shortest path: a contained query was trained on.

        Raises:
            MemoryError: a bit for each pair of cities does not fit.
        """
        n = len(self.graph)
        size = (n * n + 7) // 8
        threads = min(get_num_threads(), len(self.shards)) if size <= 2**30 else 1
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

    def queries(self, part: str) -> tuple[Rows, np.ndarray]:
        """Return the rows of a part and which are contained in training (computed once)."""
        path = self.folder / f"{part}-contained-{recipe_digest(self.recipe)}.npz"
        rows = self.rows(part)
        if not path.exists():
            with lock(self.folder / ".lock"):
                flags = self.contained(rows)
                with atomic_write(path) as tmp, open(tmp, "wb") as file:
                    np.savez(file, flags=flags, shards=np.array(_shards_digest(self.shards)))
        return rows, _read_flags(path, len(rows), _shards_digest(self.shards))


def _shards_digest(shards: list[dict]) -> str:
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()


def _read_flags(path: Path, rows: int, shards: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as file:
            flags, of = file["flags"], str(file["shards"])
    except Exception as error:  # a damaged zip fails in many ways
        message = f"{path} is damaged ({npz_fault(error)}): delete it; the next run makes it"
        raise DataFileError(message) from None
    if flags.shape != (rows,) or flags.dtype != bool or of != shards:
        raise DataFileError(f"{path} does not fit the dataset: delete it; the next run makes it")
    return flags


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
            address or "local" makes them on Dask workers (see `workers.connected`).

    Raises:
        DataFileError: the folder holds another recipe's shards, or a damaged manifest.
        ValueError: the recipe belongs to another graph, or `targets_per_shard` is not positive.
        ClusterError, ImportError: the cluster cannot be used. What a worker raises is raised here;
            the finished shards stay.
    """
    if targets_per_shard < 1:
        raise ValueError(f"targets_per_shard is a positive number, not {targets_per_shard}")
    if recipe.graph != graph.fingerprint:
        raise ValueError(f"the recipe is for graph {recipe.graph[:12]}, not {graph!r}")
    with lock(folder / ".lock"):
        manifest = _begin(folder, recipe, targets_per_shard)
        for name, content, entry in _missing_shards(graph, recipe, folder, manifest, client):
            with atomic_write(folder / name) as part:
                part.write_bytes(content)
            manifest["shards"][name] = entry
            write_json(folder / "manifest.json", sealed(manifest))
        if not manifest["complete"]:
            write_json(folder / "manifest.json", sealed(manifest | {"complete": True}))
    return open_dataset(folder, graph)


def _missing_shards(
    graph: CityGraph, recipe: Recipe, folder: Path, manifest: dict, client: Where
) -> Iterator[tuple[str, bytes, dict]]:
    """Yield name, bytes and manifest entry of every shard that is not there, as they are made."""
    step = manifest["targets_per_shard"]
    names = {a: f"shard-{i:04d}.arrow" for i, a in enumerate(range(0, len(graph), step))}
    made = {name for name in manifest["shards"] if (folder / name).exists()}
    jobs = [(recipe, start, step) for start, name in names.items() if name not in made]
    label = f"shortest paths ({recipe.split} split)"
    bar = tqdm(desc=label, unit="shard", total=len(names), initial=len(names) - len(jobs))
    with bar, connected(client if jobs else None) as cluster:
        for job, fetch in spread_over_graph(cluster, _make_shard, graph, jobs):
            yield names[job[1]], *fetch()
            bar.update()


def _make_shard(graph: CityGraph, recipe: Recipe, start: int, targets: int) -> tuple[bytes, dict]:
    """The bytes and the manifest entry of one shard: all that decides them is given."""
    mine = np.arange(start, min(start + targets, len(graph)), dtype=np.int32)
    rows = sample_rows(graph, recipe, mine, threads=1)
    return _encode_shard(rows, len(graph))


def sample_rows(
    graph: CityGraph, recipe: Recipe, targets: np.ndarray, threads: int | None = None
) -> Rows:
    """Return the rows that a recipe draws for `targets`, with their shortest paths, in memory.

    They depend on the recipe and the targets alone: any number of threads gives the same.
    """
    draw = pair_drawer(recipe, graph)

    def rows_of(block: Block) -> Rows:
        source, tree, part = draw(block.targets, block.next_city)
        found = block.follow(source, tree)
        mm = block.mm[source, tree].astype(np.int64)
        rows = Rows(source, block.targets[tree], mm, part, found)
        keep = admit(recipe, graph, part, found)
        return rows if keep.all() else rows.take(keep)

    blocks = in_blocks(np.asarray(targets, np.int32))
    return Rows.concatenate(list(over_blocks(graph, blocks, rows_of, threads)))


def _begin(folder: Path, recipe: Recipe, targets_per_shard: int) -> dict:
    remove_parts(folder)
    head = {"version": VERSION, "recipe": recipe.to_json(), "targets_per_shard": targets_per_shard}
    if not (folder / "manifest.json").exists():
        manifest = head | {"shards": {}, "complete": False}
        write_json(folder / "manifest.json", sealed(manifest))
        return manifest
    manifest = _read_manifest(folder)
    if {key: manifest[key] for key in head} != head:
        raise DataFileError(f"{folder} holds a dataset of another recipe: {REMEDY}")
    return manifest


def _read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    known = {"version", "recipe", "targets_per_shard", "shards", "complete", "sha256"}
    manifest = read_json(path, MAKER)
    if isinstance(manifest, dict) and manifest.get("version") not in (None, VERSION):
        raise DataFileError(f"{path} is of version {manifest['version']}, not {VERSION}: {REMEDY}")
    manifest = read_sealed(path, MAKER)
    if set(manifest) != known or not isinstance(manifest["shards"], dict):
        raise DataFileError(f"{path} is no dataset manifest: {REMEDY}")
    return manifest


def open_dataset(folder: Path, graph: CityGraph) -> Dataset:
    """Open a finished dataset.

    Raises:
        DataFileError: missing, unfinished, of another graph or version, or with shards missing.
    """
    manifest = _read_manifest(folder)
    recipe = _recorded_recipe(folder, manifest)
    if recipe.graph != graph.fingerprint:
        raise DataFileError(f"{folder} was made from another graph ({recipe.graph[:12]}): {REMEDY}")
    missing = [name for name in manifest["shards"] if not (folder / name).exists()]
    if missing or not manifest["complete"]:
        what = f"lacks {missing[0]}" if missing else "is unfinished"
        raise DataFileError(f"{folder} {what}: run notebook 02-shortest-path-dataset again")
    shards = [{"name": name} | entry for name, entry in sorted(manifest["shards"].items())]
    return Dataset(folder, graph, recipe, shards)


def _recorded_recipe(folder: Path, manifest: dict) -> Recipe:
    try:
        return Recipe(**manifest["recipe"])
    except (TypeError, ValueError) as error:
        message = f"{folder / 'manifest.json'} holds no recipe ({error}): {REMEDY}"
        raise DataFileError(message) from None


def _encode_shard(rows: Rows, cities: int) -> tuple[bytes, dict]:
    ids = pa.uint16() if cities <= 65_535 else pa.uint32()
    tokens = pa.array(rows.paths.tokens).cast(ids)
    columns = {
        "source": pa.array(rows.source).cast(pa.uint32()),
        "target": pa.array(rows.target).cast(pa.uint32()),
        "mm": pa.array(rows.mm),
        "part": pa.array(rows.part),
        "path": pa.LargeListArray.from_arrays(rows.paths.offsets, tokens),
    }
    table = pa.table(columns)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    counts = np.bincount(rows.part, minlength=3)[[TRAIN, VALID, TEST]].tolist()
    entry = dict(zip(PARTS, counts, strict=True))
    entry |= {"tokens": len(rows.paths.tokens), "sha256": hashlib.sha256(content).hexdigest()}
    return content, entry


def _read_shard(folder: Path, entry: dict) -> Rows:
    path = folder / entry["name"]
    if not path.exists():
        raise DataFileError(f"{path} is missing: run notebook 02-shortest-path-dataset again")
    if sha256(path) != entry["sha256"]:
        what = "fails its checksum (truncated or altered)"
        raise DataFileError(f"{path} {what}: delete it; {MAKER} makes it")
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all().combine_chunks()
    source, target = (table[c].to_numpy().astype(np.int64) for c in ("source", "target"))
    path_column = table["path"].chunk(0) if table.num_rows else None
    if path_column is None:
        found = Paths(np.zeros(0, np.int32), np.zeros(1, np.int64))
    else:
        found = Paths(
            path_column.values.to_numpy().astype(np.int32), path_column.offsets.to_numpy()
        )
    return Rows(source, target, table["mm"].to_numpy(), table["part"].to_numpy(), found)


def iterate_train(dataset: Dataset) -> Iterator[Rows]:
    """Yield the training rows of each shard in turn."""
    for i in range(len(dataset.shards)):
        rows = dataset.shard(i)
        yield rows.take(rows.part == TRAIN)


def recipe_digest(recipe: Recipe) -> str:
    """Return a short name for a recipe, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()[:12]


def frame(rows: Rows, graph: CityGraph) -> pd.DataFrame:
    """Return rows as a table for people: names, km, hops, detour ratio, and the path in words."""
    straight = graph.distance_km(rows.source, rows.target)
    table = pd.DataFrame({"from": graph.labels[rows.source], "to": graph.labels[rows.target]})
    table["km"], table["hops"] = rows.km, rows.hops
    table["detour"] = rows.km / np.maximum(straight, 1e-3)
    table["path"] = [" -> ".join(graph.labels[p]) for p in rows.paths]
    return table
