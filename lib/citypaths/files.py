"""Where things live, how files are written (whole or not at all), and whether memory suffices."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


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


def records_dir() -> Path:
    """Return where runs of this machine are recorded: `CITYPATHS_REPORTS`, else `data/ledger`."""
    return Path(os.environ.get("CITYPATHS_REPORTS") or data_dir() / "ledger")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path`, flushed to disk, when the block ends well.

    Raises:
        OSError: the disk is full or the folder is not writable; the message names `path`.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    except OSError as error:
        raise _with_remedy(error, path) from error
    finally:
        if part:
            part.unlink(missing_ok=True)


def _with_remedy(error: OSError, path: Path) -> OSError:
    """The error with the name of the file and what to do, where it is about writing `path`."""
    name = error.filename
    own = name is None or Path(name) in (path, *path.parents)
    if not own and not Path(name).name.startswith(f".{path.name}."):
        return error
    what = f"{error.strerror or error}; it was not written, what was there stays. Free disk space "
    what += "or make the folder writable, then run it again"
    return OSError(error.errno or errno.EIO, what, str(path))


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of `name` left in a folder; its lock must be held."""
    for stale in folder.glob(f".{name}.*.part"):
        stale.unlink()


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created when missing), waiting for whoever has it.

    Raises:
        BlockingIOError: without `wait`, another has it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115
    except OSError as error:
        raise _with_remedy(error, path) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def sha256(*parts: bytes | memoryview | Path) -> str:
    """Return the SHA-256 of bytes and of the contents of files, end to end, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part)
    return digest.hexdigest()


def digest(value: Any, digits: int = 8) -> str:
    """Return so many hexadecimal digits that name a JSON-able value."""
    return sha256(json.dumps(value, sort_keys=True).encode())[:digits]


def npz_fault(error: Exception) -> str:
    """Say why a .npz file was refused, without numpy's advice to unpickle it."""
    return "it holds no plain arrays" if "pickle" in str(error) else str(error)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, whole or not at all."""
    write_bytes(path, f"{json.dumps(value, indent=1, sort_keys=True)}\n".encode())


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file.

    Raises:
        DataFileError: the file is missing or is not JSON; `made_by` tells how to make it again.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataFileError(f"{path} is missing: {made_by} makes it") from None
    except (ValueError, RecursionError) as error:
        raise DataFileError(f"{path} is damaged ({error}): delete it; {made_by} makes it") from None


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` with a SHA-256 of the rest of it under "sha256"."""
    content = {key: item for key, item in value.items() if key != "sha256"}
    return content | {"sha256": digest(content, 64)}


def read_sealed(path: Path, made_by: str) -> dict[str, Any]:
    """Read a JSON file that was written as `sealed`.

    Raises:
        DataFileError: the file is missing, is not JSON, or its content fails its checksum.
    """
    value = read_json(path, made_by)
    if not isinstance(value, dict) or value != sealed(value):
        message = f"{path} fails its checksum (altered, or of an older version): delete it; "
        raise DataFileError(f"{message}{made_by} makes it")
    return value


def free_memory() -> float:
    """Return the bytes that may be asked for: nine tenths of what is free."""
    return 0.9 * psutil.virtual_memory().available


def require_memory(needed: float, what: str, remedy: str) -> None:
    """Check that so many bytes are free on this machine.

    Raises:
        MemoryError: names what was asked, how much it needs, how much there is, and the remedy.
    """
    free = free_memory()
    if needed > free:
        sizes = f"needs about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB may be used"
        raise MemoryError(f"{what} {sizes}: {remedy}")
