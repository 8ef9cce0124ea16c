"""One notebook run in a process and a folder of its own; all that it left comes back as bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
GRACE = 20.0  # seconds for a run that is stopped to stop its kernel
LAST = 4000  # characters kept of what a failed run said


@dataclass(frozen=True)
class Outcome:
    """What comes back from a run.

    Attributes:
        notebook: the executed copy, up to the failed cell where one failed; may be empty.
        records: the ledger records it wrote.
        error: what went wrong, empty for a run that ended well.
    """

    notebook: bytes
    records: list[dict[str, Any]]
    error: str = ""


def run_apart(
    name: str, source: bytes, parameters: dict[str, Any], timeout: float | None, threads: int
) -> Outcome:
    """Run a notebook given as bytes; its environment, ledger and folder are this run's alone.

    Args:
        name: what the notebook is called in messages.
        timeout: seconds after which the run is stopped, or None.
        threads: cores that numerical libraries may use.
    """
    with tempfile.TemporaryDirectory(prefix="citypaths-") as made:
        folder = Path(made)
        notebook, out = folder / f"{name}.ipynb", folder / "out" / f"{name}.ipynb"
        notebook.write_bytes(source)
        command = [sys.executable, "-m", "citypaths.notebooks", "run", str(notebook), str(out)]
        environment = os.environ | dict.fromkeys(THREADS, str(threads))
        environment |= {"CITYPATHS_REPORTS": str(folder / "reports")}
        error = _run([*command, "-y", yaml.safe_dump(parameters)], environment, timeout)
        kept = out.with_suffix(".failed.ipynb") if error else out
        return Outcome(
            kept.read_bytes() if kept.exists() else b"",
            [json.loads(path.read_text()) for path in sorted(folder.glob("reports/runs/*.json"))],
            error.replace(f"{out.parent}/", "").replace(f"{folder}/", ""),
        )


def _run(command: list[str], environment: dict[str, str], timeout: float | None) -> str:
    """Run a command and return why it failed, in its own last words, or nothing."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            said = process.communicate(timeout=timeout)[1]
        except subprocess.TimeoutExpired:
            return f"stopped after {timeout:g} s\n{_stop(process)}".strip()
        except BaseException:
            _stop(process)
            raise
    if not process.returncode:
        return ""
    return said.strip()[-LAST:].removeprefix("error: ") or f"exit status {process.returncode}"


def _stop(process: subprocess.Popen[str]) -> str:
    """End a run, kindly so that it stops its kernel, and return its last words."""
    process.terminate()
    try:
        said = process.communicate(timeout=GRACE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[1]
    return said.strip()[-LAST:]
