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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numba import njit
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
from citypaths.paths import Paths
from citypaths.shortest_paths import paths, shortest_path_trees
from citypaths.splits import PARTS, TEST, TRAIN, VALID, Recipe, admit, sample_pairs

VERSION = 2
MAKER = "notebook 02-shortest-path-dataset"
REMEDY = f"delete the folder; {MAKER} makes it"


@dataclass(frozen=True, eq=False)
class Rows:
    """Queries with their shortest paths.

    Attributes:
        source, target: int64 [rows]. mm: int64 [rows], optimal length in whole millimetres.
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
        """
        n = len(self.graph)
        covered = np.zeros((n * n + 7) // 8, np.uint8)
        for i in range(len(self.shards)):
            shard = self.shard(i)
            train = shard.paths.take(shard.part == TRAIN)
            _cover(covered, n, train.tokens.astype(np.int64), train.offsets)
        key = np.minimum(rows.source, rows.target) * n + np.maximum(rows.source, rows.target)
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


@njit(cache=True)
def _cover(bits, n, tokens, offsets):
    for p in range(len(offsets) - 1):
        for i in range(offsets[p], offsets[p + 1]):
            for j in range(i + 1, offsets[p + 1]):
                key = min(tokens[i], tokens[j]) * n + max(tokens[i], tokens[j])
                bits[key >> 3] |= np.uint8(1 << (key & 7))


def make_dataset(
    graph: CityGraph, recipe: Recipe, folder: Path, targets_per_shard: int = 256
) -> Dataset:
    """Write the dataset of `recipe` into `folder`, or finish what an interrupted run began.

    Raises:
        DataFileError: the folder holds another recipe's shards, or a damaged manifest.
        ValueError: the recipe belongs to another graph, or `targets_per_shard` is not positive.
    """
    if targets_per_shard < 1:
        raise ValueError(f"targets_per_shard is a positive number, not {targets_per_shard}")
    if recipe.graph != graph.fingerprint:
        raise ValueError(f"the recipe is for graph {recipe.graph[:12]}, not {graph!r}")
    starts = range(0, len(graph), targets_per_shard)
    with lock(folder / ".lock"):
        manifest = _begin(folder, recipe, targets_per_shard)
        bar = tqdm(starts, desc=f"shortest paths ({recipe.split} split)", unit="shard")
        for number, start in enumerate(bar):
            name = f"shard-{number:04d}.arrow"
            if name in manifest["shards"] and (folder / name).exists():
                continue
            targets = np.arange(start, min(start + targets_per_shard, len(graph)))
            rows = _sample_rows(graph, recipe, targets)
            manifest["shards"][name] = _write_shard(folder / name, rows, len(graph))
            write_json(folder / "manifest.json", sealed(manifest))
        if not manifest["complete"]:
            write_json(folder / "manifest.json", sealed(manifest | {"complete": True}))
    return open_dataset(folder, graph)


def _sample_rows(graph: CityGraph, recipe: Recipe, targets: np.ndarray) -> Rows:
    trees = shortest_path_trees(graph, targets)
    pairs, part = sample_pairs(recipe, graph, trees)
    found = paths(trees, pairs)
    mm = trees.mm[pairs[:, 0], pairs[:, 1] - targets[0]].astype(np.int64)
    rows = Rows(pairs[:, 0], pairs[:, 1], mm, part, found)
    return rows.take(admit(recipe, graph, part, found)) if len(rows) else rows


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


def _write_shard(path: Path, rows: Rows, cities: int) -> dict:
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
    with atomic_write(path) as part:
        with (
            pa.OSFile(str(part), "wb") as file,
            pa.ipc.new_file(file, table.schema, options=options) as w,
        ):
            w.write_table(table)
        checksum = sha256(part)
    counts = np.bincount(rows.part, minlength=3)[[TRAIN, VALID, TEST]].tolist()
    entry = dict(zip(PARTS, counts, strict=True))
    return entry | {"tokens": len(rows.paths.tokens), "sha256": checksum}


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
