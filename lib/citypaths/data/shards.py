"""Rows of a dataset: drawn for some targets, and held by a shard, an Arrow IPC file.

Columns: source, target, mm (length in whole millimetres), part (0 train, 1 valid, 2 test), path
(list of city ids, source first). A shard depends on its recipe and its targets alone: the bytes
are the same wherever and in whatever order shards are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from citypaths.data.splits import PARTS, TEST, TRAIN, VALID, Recipe, admit, pair_drawer
from citypaths.files import DataFileError, sha256
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import Block, in_blocks, over_blocks

MAKER = "notebook 02-shortest-path-dataset"


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


def make_shard(
    graph: CityGraph, name: str, recipe: Recipe, start: int, stop: int
) -> tuple[str, bytes, dict]:
    """Return the name, the bytes and the manifest entry of the shard of some targets.

    Args: start, stop: the first target and the one after the last.
    """
    rows = sample_rows(graph, recipe, np.arange(start, stop), threads=1)
    content = encode_shard(rows, len(graph))
    return name, content, count_rows(rows) | {"sha256": sha256(content)}


def encode_shard(rows: Rows, cities: int) -> bytes:
    """Return rows as the bytes of a shard."""
    ids = pa.uint16() if cities <= 65_535 else pa.uint32()
    tokens = pa.array(rows.paths.tokens).cast(ids)
    columns = {
        "source": pa.array(rows.source).cast(pa.uint32()),
        "target": pa.array(rows.target).cast(pa.uint32()),
        "mm": pa.array(rows.mm),
        "part": pa.array(rows.part),
        "path": pa.LargeListArray.from_arrays(rows.paths.offsets, tokens),
    }
    table, sink = pa.table(columns), pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def count_rows(rows: Rows) -> dict[str, int]:
    """Return how many rows each part has, and the tokens of all."""
    counts = np.bincount(rows.part, minlength=3)[[TRAIN, VALID, TEST]].tolist()
    return dict(zip(PARTS, counts, strict=True)) | {"tokens": len(rows.paths.tokens)}


def read_shard(folder: Path, entry: dict) -> Rows:
    """Read the shard of a manifest entry with its `name`.

    Raises:
        DataFileError: the file is missing or fails its checksum.
    """
    path = folder / entry["name"]
    if not path.exists():
        raise DataFileError(f"{path} is missing: run {MAKER} again")
    if sha256(path) != entry["sha256"]:
        what = "fails its checksum (truncated or altered)"
        raise DataFileError(f"{path} {what}: delete it; {MAKER} makes it")
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    source, target = (table[c].to_numpy().astype(np.int64) for c in ("source", "target"))
    lists = table["path"].combine_chunks()
    found = Paths(lists.values.to_numpy().astype(np.int32), lists.offsets.to_numpy())
    return Rows(source, target, table["mm"].to_numpy(), table["part"].to_numpy(), found)
