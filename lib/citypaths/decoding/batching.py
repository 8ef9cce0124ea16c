"""Long searches in parts: progress is shown, and an interrupt loses no finished query."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from citypaths.files import DataFileError, atomic_write, npz_fault, remove_parts
from citypaths.map.paths import Found, Paths


class Interrupted(KeyboardInterrupt):
    """A search was stopped; `found` holds what the first queries came to, in order."""

    def __init__(self, found: Found, queries: int) -> None:
        kept = f"{len(found.paths):,} of {queries:,} queries are finished: see error.found"
        super().__init__(f"the search was stopped; {kept}")
        self.found = found


def in_parts(
    method: Callable[..., Found],
    source,
    target,
    *,
    part: int = 256,
    folder: Path | None = None,
    name: str = "search",
    **options: Any,
) -> Found:
    """Call `method(source, target, **options)` on slices of the queries and join the results.

    Args:
        part: queries a slice. folder: keeps each finished slice in a file, where a later call with
            the same queries finds it: an interrupted search goes on. It knows nothing of the
            method's options; give each setting a folder of its own.
        options: passed on; a `seed` is raised by the number of the slice's first query.

    Raises:
        Interrupted: on a keyboard interrupt, with the finished queries in `found`.
        DataFileError: a file in `folder` is damaged, or of other queries.
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    done: list[Found] = []
    if folder is not None:
        remove_parts(folder)
    with tqdm(total=len(source), desc=name, unit="query", leave=False) as bar:
        for first in range(0, len(source), part):
            slices = (source[first : first + part], target[first : first + part])
            own = options | ({"seed": options["seed"] + first} if "seed" in options else {})
            file = folder / f"{first:08d}.npz" if folder is not None else None
            try:
                done.append(_kept(file, *slices) or _keep(file, method(*slices, **own), *slices))
            except KeyboardInterrupt:
                raise Interrupted(Found.concatenate(done), len(source)) from None
            bar.update(len(slices[0]))
    return Found.concatenate(done)


def _keep(file: Path | None, found: Found, source: np.ndarray, target: np.ndarray) -> Found:
    if file is not None:
        arrays = {"source": source, "target": target, "tokens": found.paths.tokens}
        arrays |= {"offsets": found.paths.offsets, "seconds": np.array(found.seconds)}
        arrays |= {n: getattr(found, n) for n in ("flops", "lookups", "expansions")}
        with atomic_write(file) as part, part.open("wb") as stream:
            np.savez(stream, **arrays)
    return found


def _kept(file: Path | None, source: np.ndarray, target: np.ndarray) -> Found | None:
    if file is None or not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        paths = Paths(arrays["tokens"], arrays["offsets"])
        costs = (arrays[n] for n in ("flops", "lookups", "expansions"))
        found = Found(paths, *costs, float(arrays["seconds"]))
        same = np.array_equal(arrays["source"], source) & np.array_equal(arrays["target"], target)
    except Exception as error:  # a damaged zip fails in many ways
        message = f"{file} is no finished part of a search ({npz_fault(error)}): delete it"
        raise DataFileError(message) from error
    if not same:
        raise DataFileError(f"{file} is of other queries: delete {file.parent}, or name another")
    return found
