"""Where things live, and how files are written: whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class DataFileError(ValueError):
    """A file that is damaged, foreign or missing; the message names it and the remedy."""


def project_root() -> Path:
    """Return the repository: `CITYPATHS_HOME`, else this checkout, else the current folder."""
    if home := os.environ.get("CITYPATHS_HOME"):
        return Path(home)
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def data_dir() -> Path:
    """Return the folder of generated and downloaded data."""
    return project_root() / "data"


def reports_dir() -> Path:
    """Return the folder of committed results: `CITYPATHS_REPORTS`, else `reports`."""
    if folder := os.environ.get("CITYPATHS_REPORTS"):
        return Path(folder)
    return project_root() / "reports"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`, flushed to disk, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created when missing), waiting for whoever has it.

    Raises:
        BlockingIOError: without `wait`, another has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file.

    Raises:
        DataFileError: the file is missing or is not JSON; `made_by` tells how to make it again.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFileError(f"{path} is missing: {made_by} makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path} is damaged ({error}): delete it; {made_by} makes it") from None
