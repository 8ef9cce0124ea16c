"""Run, prepare, report and strip notebooks, from the command line or from Python.

    python -m commands.notebooks run notebooks/01-city-dag.ipynb out/01-city-dag.ipynb -p seed 1
    python -m commands.notebooks prepare -p size tiny notebooks/*.ipynb out/
    python -m commands.notebooks report data/executed/medium-seed0 reports/medium
    python -m commands.notebooks reference data/executed/tiny-seed0 notebooks lib/tests/references
    python -m commands.notebooks strip notebooks/*.ipynb

Papermill does the work. What is added: an output file is whole or absent, unknown parameters are
refused, errors are short, and two runs never write the same file.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from papermill.cli import _resolve_type as parse_value
from papermill.exceptions import PapermillExecutionError

from citypaths.files import DataFileError, atomic_write, lock, project_root, write_bytes, write_json

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FRAME = re.compile(r"(File |Cell In|-+> ?\d+)")
NOTEBOOK = "[0-9][0-9]-*.ipynb"
COMPARED = "nbval-check-output"  # the tag of cells whose outputs nbval compares


class RunnerError(RuntimeError):
    """A notebook that could not be run or converted; the message is all a reader needs."""


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook in format 4.

    Raises:
        RunnerError: the file is missing or is no notebook.
    """
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)  # read itself only warns
        return nb
    except FileNotFoundError:
        raise RunnerError(f"{path} does not exist") from None
    except OSError:
        raise
    except Exception as error:  # nbformat fails in many ways on what is no notebook
        raise RunnerError(f"{path} is not a notebook: {str(error)[:200]}") from None


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def known_parameters(nb: NotebookNode) -> dict[str, Any]:
    """Return name and default of every parameter in the cell tagged `parameters`.

    Raises:
        RunnerError: a default is no plain value; code is read here, never run.
    """
    sources = [cell.source for cell in nb.cells if "parameters" in tags(cell)]
    names = {}
    try:
        for node in ast.parse("\n".join(sources)).body:
            assigned = getattr(node, "targets", [getattr(node, "target", None)])
            found = [target.id for target in assigned if isinstance(target, ast.Name)]
            names |= {name: ast.literal_eval(node.value) for name in found}
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError) as error:
        what = "the cell tagged parameters holds more than names and plain values"
        raise RunnerError(f"{what}: {error}") from None
    return names


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook does not have.

    Raises:
        RunnerError: names each unknown parameter, its nearest matches and the known ones, or the
            notebook whose parameters are no plain values.
    """
    nb = read_notebook(notebook)
    try:
        known = known_parameters(nb)
    except RunnerError as error:
        raise RunnerError(f"{notebook}: {error}") from None
    lines = []
    for name in (name for name in parameters if name not in known):
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        lines.append(f"{notebook.name} has no parameter {name}{hint}")
    if lines:
        listing = ", ".join(f"{name}={default!r}" for name, default in known.items())
        raise RunnerError("\n".join([*lines, f"its parameters and defaults: {listing or 'none'}"]))


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the lock beside `out`; the system drops it when this process ends, however it ends.

    Raises:
        RunnerError: another run holds it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(lock(out.with_suffix(".lock"), wait=False))
        except BlockingIOError:
            raise RunnerError(f"another run is writing {out}: wait for it or stop it") from None
        yield


def execute(
    notebook: Path, out: Path, parameters: dict[str, Any] | None = None, cwd: Path | None = None
) -> Path:
    """Run a notebook with other parameters and write the executed copy, whole or not at all.

    The unfinished copy is `out` with the suffix `.part.ipynb`; a failure keeps it as
    `.failed.ipynb`. The copy bears the time at which the run began, so that make sees a source
    that was edited during the run as newer.

    Args:
        notebook: the notebook to run.
        out: where the executed copy goes.
        parameters: values by name, in place of the defaults in the cell tagged `parameters`.
        cwd: working directory of the kernel; the notebook's folder when not given.

    Returns:
        `out`.

    Raises:
        RunnerError: unknown parameter, failed cell, dead kernel, or another run writes `out`.
    """
    check_parameters(notebook, parameters or {})
    part, failed = out.with_suffix(".part.ipynb"), out.with_suffix(".failed.ipynb")
    with only_writer(out):
        began = time.time()
        try:
            nb = _papermill(notebook, part, parameters, cwd or notebook.parent)
        except BaseException as error:
            if part.exists():
                os.replace(part, failed)
            if isinstance(error, PapermillExecutionError | DeadKernelError):
                raise RunnerError(describe_failure(notebook, failed, error)) from None
            if isinstance(error, OSError):
                what = f"{out} was not written ({error})"
                raise RunnerError(f"{what}: free disk space, then run it again") from None
            raise
        with atomic_write(out) as whole:
            nbformat.write(coalesce(nb), whole)
            os.utime(whole, (began, began))
        part.unlink()
        failed.unlink(missing_ok=True)
    return out


def _papermill(
    notebook: Path, out: Path, parameters: dict[str, Any] | None, cwd: Path, **options: Any
) -> NotebookNode:
    """Call papermill with this project's settings."""
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel first
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    bar = {"desc": notebook.stem, "leave": False} if sys.stderr.isatty() else False
    return papermill.execute_notebook(
        *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, out)),
        parameters=parameters or {},
        kernel_name="python3",
        language="python",
        cwd=cwd,
        progress_bar=bar,
        autosave_cell_every=0,
        extra_arguments=["--log-level=CRITICAL"],  # of the kernel
        **options,
    )


def describe_failure(notebook: Path, failed: Path, error: Exception) -> str:
    """Say in a few lines which cell failed, why, and where the executed part is kept."""
    kept = f"executed up to there: {failed}"
    if isinstance(error, DeadKernelError):
        started = [c.source for c in read_notebook(failed).cells if c.metadata.papermill.start_time]
        where = _cell_name(notebook, started[-1]) if started else "no cell"
        return f"{notebook}: the kernel died in {where} (out of memory, or killed)\n{kept}"
    where = f"{_cell_name(notebook, error.source)}, In [{error.exec_count}]"
    trace = ANSI.sub("", "\n".join(error.traceback)).splitlines()
    frames = [f"    {line.strip()[:160]}" for line in trace if FRAME.match(line)][-6:]
    reason = ANSI.sub("", f"{error.ename}: {error.evalue}")[:1000]
    return "\n".join([f"{notebook} failed in {where}", *frames, reason, kept])


def _cell_name(notebook: Path, source: str) -> str:
    """Return 'cell 7 of 30', counted in the notebook as a reader sees it."""
    sources = [cell.source for cell in read_notebook(notebook).cells]
    number = sources.index(source) + 1 if source in sources else "?"
    return f"cell {number} of {len(sources)}"


def coalesce(nb: NotebookNode) -> NotebookNode:
    """Merge adjacent pieces of one stream and keep only the last state of a progress bar."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = ANSI.sub("", output.text)
    nb, _ = CoalesceStreamsPreprocessor().preprocess(nb, {})
    for cell in nb.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("text", "text").strip()]
    return nb


def prepare(
    notebook: Path,
    out: Path,
    parameters: dict[str, Any] | None = None,
    references: Path | None = None,
) -> Path:
    """Write a copy of the notebook with other parameters, not executed, and return its path.

    Args:
        references: folder of recorded outputs (see `reference`), which the copy's cells bear for
            nbval to compare with what they print when they run.

    Raises:
        RunnerError: an unknown parameter, or a cell to compare without a recorded output.
    """
    check_parameters(notebook, parameters or {})
    out.parent.mkdir(parents=True, exist_ok=True)
    _papermill(notebook, out, parameters, notebook.parent, prepare_only=True)
    if references is not None:
        nb, known = read_notebook(out), _recorded(references / f"{notebook.stem}.json")
        for cell in (cell for cell in nb.cells if COMPARED in tags(cell)):
            if cell.id not in known:
                raise RunnerError(f"{notebook}: cell {cell.id} has no reference: make references")
            cell.outputs = [nbformat.from_dict(output) for output in known[cell.id]]
            cell.execution_count = 1  # nbval takes no outputs of a cell that never ran
        nbformat.write(nb, out)
    return out


def _recorded(path: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def reference(executed: Path, notebook: Path, folder: Path) -> Path:
    """Record what the cells tagged `nbval-check-output` printed, and return the file.

    Args:
        executed: the executed copy. notebook: its source, which has the tags.
        folder: of the records, one JSON a notebook: outputs by cell id.

    Raises:
        RunnerError: a tagged cell was not executed, or it drew a figure or wrote to stderr, which
            differ from machine to machine.
    """
    ran = {cell.id: cell for cell in read_notebook(executed).cells}
    kept: dict[str, list[NotebookNode]] = {}
    for cell in (cell for cell in read_notebook(notebook).cells if COMPARED in tags(cell)):
        outputs = ran[cell.id].outputs if cell.id in ran else []
        plain = all("image/png" not in o.get("data", {}) for o in outputs)
        if not outputs or not plain or any(o.get("name") == "stderr" for o in outputs):
            raise RunnerError(f"{notebook}: cell {cell.id} has no text to compare")
        kept[cell.id] = [
            output | {"metadata": {}} if "metadata" in output else output for output in outputs
        ]
        for output in kept[cell.id]:
            if "execution_count" in output:
                output["execution_count"] = None
    path = folder / f"{notebook.stem}.json"
    write_json(path, kept)
    return path


def to_markdown(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Convert an executed notebook to Markdown.

    Returns:
        The text, and the figures by path relative to the text.

    Raises:
        RunnerError: a cell of the notebook holds an error, or an output is damaged.
    """
    nb = coalesce(read_notebook(notebook))
    for cell in (cell for cell in nb.cells if cell.cell_type == "code"):
        if any(output.output_type == "error" for output in cell.outputs):
            raise RunnerError(f"{notebook} holds a failed cell: run it again before reporting it")
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    names = {"unique_key": notebook.stem, "output_files_dir": f"{notebook.stem}_files"}
    try:
        body, resources = MarkdownExporter().from_notebook_node(nb, names)
    except ValueError as error:  # such as a figure that is no base64
        raise RunnerError(f"{notebook} cannot be converted ({error}): run it again") from None
    body = re.sub(r"<style scoped>.*?</style>\n?", "", body, flags=re.DOTALL)
    body = body.replace(f"{project_root().resolve()}/", "").replace(f"{Path.home()}/", "~/")
    body = re.sub(r" at 0x[0-9a-f]{6,}", "", body)  # an address differs from run to run
    body = re.sub(r"\n([ \t]*\n){2,}", "\n\n", body)
    head = "<!-- Written by make report: do not edit. -->"
    return f"{head}\n\n{body.strip()}\n", resources["outputs"]


def report(executed: Path, out: Path) -> list[Path]:
    """Convert every executed notebook of a run to Markdown with figures beside it.

    Args:
        executed: folder of executed notebooks.
        out: folder of the report; `NN-name.md` and `NN-name_files/` in it are replaced.

    Returns:
        The Markdown files.

    Raises:
        RunnerError: the folder holds no executed notebook, or a cell of one failed.
    """
    finished = [p for p in sorted(executed.glob(NOTEBOOK)) if p.name.count(".") == 1]
    if not finished:
        raise RunnerError(f"{executed} holds no executed notebook: make run writes them")
    for notebook in finished:
        body, figures = to_markdown(notebook)
        shutil.rmtree(out / f"{notebook.stem}_files", ignore_errors=True)
        for name, content in figures.items():
            write_bytes(out / f"{notebook.stem}_files" / Path(name).name, content)
        write_bytes(out / f"{notebook.stem}.md", body.encode())
    return [out / f"{notebook.stem}.md" for notebook in finished]


def strip(notebook: Path) -> Path:
    """Remove outputs, counts and machine-specific metadata in place, and return the path."""
    nb = nbformat.v4.upgrade(read_notebook(notebook))
    nb.cells = [cell for cell in nb.cells if "injected-parameters" not in tags(cell)]
    for cell in nb.cells:
        cell.metadata = {"tags": tags(cell)} if tags(cell) else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nb.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    with atomic_write(notebook) as part:
        nbformat.write(nbformat.from_dict(nb), part)
    return notebook


def read_parameters(pairs: list[list[str]], documents: list[str]) -> dict[str, Any]:
    """Read `-y` YAML mappings and `-p` name-value pairs; pairs win.

    Raises:
        RunnerError: a YAML document is not a mapping.
    """
    parameters: dict[str, Any] = {}
    for text in documents:
        mapping = yaml.safe_load(text)
        if not isinstance(mapping, dict):
            raise RunnerError(f"-y wants a YAML mapping such as '{{seed: 1}}', not {text!r}")
        parameters |= mapping
    return parameters | {name: parse_value(value) for name, value in pairs}


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    main = argparse.ArgumentParser(
        prog="python -m commands.notebooks", description="Run notebooks."
    )
    commands = main.add_subparsers(dest="command", required=True)
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    settings.add_argument("-y", action="append", default=[], metavar="YAML", help="{name: value}")
    run = commands.add_parser("run", parents=[settings], help="execute one notebook")
    run.add_argument("notebook", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("--cwd", type=Path, help="the kernel's folder (default: the notebook's)")
    copy = commands.add_parser("prepare", parents=[settings], help="copies with other parameters")
    copy.add_argument("notebooks", type=Path, nargs="+")
    copy.add_argument("out", type=Path, help="folder of the copies")
    copy.add_argument("--references", type=Path, help="outputs to compare: of `reference`")
    kept = commands.add_parser("reference", help="record what compared cells print")
    kept.add_argument("executed", type=Path, help="folder of executed notebooks")
    kept.add_argument("notebooks", type=Path, help="folder of their sources")
    kept.add_argument("out", type=Path, help="folder of the records")
    convert = commands.add_parser("report", help="executed notebooks to Markdown")
    convert.add_argument("executed", type=Path, help="folder of executed notebooks")
    convert.add_argument("out", type=Path, help="folder of the report")
    clear = commands.add_parser("strip", help="remove outputs and machine-specific metadata")
    clear.add_argument("notebooks", type=Path, nargs="+")
    return main


def command_line(options: argparse.Namespace) -> None:
    """Carry out one command and print what it wrote."""
    if options.command == "run":
        parameters = read_parameters(options.p, options.y)
        given = ", ".join(f"{name}={value}" for name, value in parameters.items())
        print(f"{options.notebook} ({given or 'defaults'}) ...", flush=True)
        began = time.monotonic()
        execute(options.notebook, options.out, parameters, options.cwd)
        print(f"{options.out} written in {time.monotonic() - began:.0f} s", flush=True)
    elif options.command == "prepare":
        parameters = read_parameters(options.p, options.y)
        for notebook in options.notebooks:
            out = options.out / notebook.name
            print(prepare(notebook, out, parameters, options.references))
    elif options.command == "reference":
        for notebook in sorted(options.notebooks.glob(NOTEBOOK)):
            print(reference(options.executed / notebook.name, notebook, options.out))
    elif options.command == "report":
        print(*report(options.executed, options.out), sep="\n")
    else:
        print(*map(strip, options.notebooks), sep="\n")


def exit_status(
    carry_out: Callable[[], None], told: tuple[type[Exception], ...], again: str
) -> int:
    """Carry out a command and return its exit status: 0, 1 (failed) or 130 (interrupted).

    Args:
        told: errors whose message is all that a reader needs.
        again: what the same command does after an interruption.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that kernels are stopped too
    try:
        carry_out()
    except told as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: the same command {again}", file=sys.stderr)
        return 130
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    told = (RunnerError, DataFileError, OSError)
    return exit_status(
        lambda: command_line(parser().parse_args(arguments)), told, "starts it again"
    )


if __name__ == "__main__":
    sys.exit(main())
