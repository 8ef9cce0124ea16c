"""The Shortest Path Dataset: a recipe, and its shards on disk, or drawn anew when asked for.

A run that was killed goes on where it was, and any number of threads or workers write the same
bytes. `manifest.json` lists the shards with their counts and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from citypaths.data.containment import contained
from citypaths.data.shards import MAKER, Rows, count_rows, make_shard, read_shard, sample_rows
from citypaths.data.splits import PARTS, Recipe
from citypaths.data.workers import Where, connected, spread_over_graph
from citypaths.files import (
    DataFileError,
    atomic_write,
    lock,
    npz_fault,
    read_json,
    read_sealed,
    remove_parts,
    sealed,
    write_bytes,
    write_json,
)
from citypaths.map.graph import CityGraph

VERSION = 2
REMEDY = f"delete the folder; {MAKER} makes it"


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
        return read_shard(self.folder, self.shards[i])

    def rows(self, part: str) -> Rows:
        """Return all rows of "train", "valid" or "test" in memory."""
        wanted = PARTS.index(part)
        shards = (self.shard(i) for i in range(len(self.shards)))
        return Rows.concatenate([rows.take(rows.part == wanted) for rows in shards])

    def contained(self, rows: Rows) -> np.ndarray:
        """Return whether each query lies inside a training path; see `containment.contained`."""
        return contained(len(self.graph), len(self.shards), self.shard, rows)

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


class LiveDataset(Dataset):
    """A dataset without files: each shard is drawn anew when it is asked for.

    The rows, their order and so the batches are those of the same recipe on disk.
    """

    def shard(self, i: int) -> Rows:
        """Draw shard i."""
        return sample_rows(self.graph, self.recipe, self.shards[i]["targets"])

    def queries(self, part: str) -> tuple[Rows, np.ndarray]:
        """Return the rows of a part and which are contained in training."""
        rows = self.rows(part)
        return rows, self.contained(rows)


def live_dataset(graph: CityGraph, recipe: Recipe, targets_per_shard: int = 256) -> LiveDataset:
    """Return the dataset of `recipe` without writing it; its rows are counted once.

    Raises:
        ValueError: the recipe belongs to another graph, or `targets_per_shard` is not positive.
    """
    _check_request(graph, recipe, targets_per_shard)
    jobs = [(recipe, *span) for span in _shard_spans(graph, targets_per_shard).values()]
    counts = [fetch() for _, fetch in spread_over_graph(None, _count_shard, graph, jobs)]
    return LiveDataset(Path("live"), graph, recipe, counts)


def _count_shard(graph: CityGraph, recipe: Recipe, start: int, stop: int) -> dict:
    mine = np.arange(start, stop)
    return count_rows(sample_rows(graph, recipe, mine, threads=1)) | {"targets": mine}


def _shard_spans(graph: CityGraph, targets: int) -> dict[str, tuple[int, int]]:
    """The first target of each shard and the one after its last, by the shard's name."""
    starts = enumerate(range(0, len(graph), targets))
    return {f"shard-{i:04d}.arrow": (a, min(a + targets, len(graph))) for i, a in starts}


def _check_request(graph: CityGraph, recipe: Recipe, targets_per_shard: int) -> None:
    if targets_per_shard < 1:
        raise ValueError(f"targets_per_shard is a positive number, not {targets_per_shard}")
    if recipe.graph != graph.fingerprint:
        raise ValueError(f"the recipe is for graph {recipe.graph[:12]}, not {graph!r}")


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
    _check_request(graph, recipe, targets_per_shard)
    with lock(folder / ".lock"):
        manifest = _begin(folder, recipe, targets_per_shard)
        for name, content, entry in _missing_shards(graph, recipe, folder, manifest, client):
            write_bytes(folder / name, content)
            manifest["shards"][name] = entry
            write_json(folder / "manifest.json", sealed(manifest))
        if not manifest["complete"]:
            write_json(folder / "manifest.json", sealed(manifest | {"complete": True}))
    return open_dataset(folder, graph)


def _missing_shards(
    graph: CityGraph, recipe: Recipe, folder: Path, manifest: dict, client: Where
) -> Iterator[tuple[str, bytes, dict]]:
    """Yield name, bytes and manifest entry of every shard that is not there, as they are made."""
    spans = _shard_spans(graph, manifest["targets_per_shard"])
    made = {name for name in manifest["shards"] if (folder / name).exists()}
    jobs = {(recipe, *span): name for name, span in spans.items() if name not in made}
    label = f"shortest paths ({recipe.split} split)"
    bar = tqdm(desc=label, unit="shard", total=len(spans), initial=len(spans) - len(jobs))
    with bar, connected(client if jobs else None) as cluster:
        for job, fetch in spread_over_graph(cluster, make_shard, graph, list(jobs)):
            yield jobs[job], *fetch()
            bar.update()


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


def recipe_digest(recipe: Recipe) -> str:
    """Return a short name for a recipe, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(recipe.to_json(), sort_keys=True).encode()).hexdigest()[:12]
