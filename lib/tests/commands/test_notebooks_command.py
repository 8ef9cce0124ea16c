"""The runner writes whole files or none, refuses unknown parameters and fails in few words."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from commands import notebooks as runner
from commands.notebooks import (
    RunnerError,
    coalesce,
    execute,
    main,
    prepare,
    reference,
    report,
    strip,
)


@pytest.fixture
def notebook(tmp_path):
    """Return a function that writes a notebook of code cells with the given parameters cell."""

    def write(*sources, parameters="size = 'small'  # small = default\nseed = 0"):
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        cells = [new_markdown_cell("# Title"), tagged, *map(new_code_cell, sources)]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        path = tmp_path / "notebooks" / "01-small-test.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "01-small-test.ipynb"


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def texts(path):
    outputs = [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]
    return [o.text for o in outputs if o.output_type == "stream"]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 0


def test_parameters_are_injected_streams_joined_and_the_folder_is_the_notebooks(notebook, out):
    path = notebook(
        "import os, sys, time\nprint(size, seed)",
        "for i in range(4):\n    print(i, flush=True)\n    time.sleep(0.05)",
        "for i in range(3):\n    print(f'\\r{i}/2', end='', flush=True)\n    time.sleep(0.05)",
        "print(os.path.basename(os.getcwd()))",
    )
    began = time.time()
    execute(path, out, {"size": "medium", "seed": 3})
    assert texts(out) == ["medium 3\n", "0\n1\n2\n3\n", "2/2", "notebooks\n"]
    assert files(out.parent) == [out.name]
    assert began - 1 < out.stat().st_mtime < ended(out), "an edit during the run is newer"


def ended(path):
    """Return when papermill finished the notebook, in seconds since the epoch."""
    stamp = nbformat.read(path, as_version=4).metadata.papermill.end_time
    return datetime.fromisoformat(stamp).timestamp()


def test_unknown_parameter_is_refused_with_its_near_match(notebook, out, capsys):
    path = notebook("print(size)")
    assert main(["run", str(path), str(out), "-p", "sise", "tiny"]) == 1
    message = capsys.readouterr().err
    assert "no parameter sise; did you mean size" in message
    assert "size='small', seed=0" in message
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "seed", "7"], {"seed": 7}),
        (["-p", "seed", "-1", "-p", "size", "full"], {"seed": -1, "size": "full"}),
        (["-p", "flag", "True", "-p", "none", "None"], {"flag": True, "none": None}),
        (
            ["-y", "{km: [20, 2.5]}", "-y", "seed: 1", "-p", "seed", "2"],
            {"km": [20, 2.5], "seed": 2},
        ),
    ],
)
def test_values_are_read_as_papermill_reads_them(arguments, expected):
    options = runner.parser().parse_args(["run", "in.ipynb", "out.ipynb", *arguments])
    assert runner.read_parameters(options.p, options.y) == expected


def test_yaml_that_is_no_mapping_is_refused():
    with pytest.raises(RunnerError, match="YAML mapping"):
        runner.read_parameters([], ["[1, 2]"])


def test_failure_is_short_and_leaves_no_half_written_output(notebook, out, capsys):
    path = notebook("def f():\n    raise ValueError('no such city')", "print('before')\nf()", "1")
    assert main(["run", str(path), str(out)]) == 1
    message = capsys.readouterr().err
    assert "cell 4 of 5, In [3]" in message or "cell 4 of 5, In [4]" in message
    assert "ValueError: no such city" in message
    assert len(message.splitlines()) <= 10
    assert files(out.parent) == ["01-small-test.failed.ipynb"]
    assert texts(out.with_suffix(".failed.ipynb")) == ["before\n"]


def test_dead_kernel_is_named(notebook, out, capsys):
    path = notebook("import os\nos._exit(9)")
    assert main(["run", str(path), str(out)]) == 1
    assert "the kernel died in cell 3 of 3" in capsys.readouterr().err
    assert files(out.parent) == ["01-small-test.failed.ipynb"]


def test_two_runs_do_not_write_one_file(notebook, out):
    path = notebook("print(size)")
    with runner.only_writer(out), pytest.raises(RunnerError, match="another run is writing"):
        execute(path, out)
    assert files(out.parent) == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_nothing_that_looks_whole(notebook, out, tmp_path, sign):
    marker = tmp_path / "kernel.pid"
    path = notebook(
        f"import os, pathlib, time\nmark = pathlib.Path({str(marker)!r})",
        "part = mark.with_suffix('.new')\npart.write_text(str(os.getpid()))\npart.rename(mark)",
        "time.sleep(nap)",
        parameters="nap = 0",
    )
    command = [sys.executable, "-m", "commands.notebooks", "run", str(path), str(out)]
    process = subprocess.Popen([*command, "-p", "nap", "600"], stderr=subprocess.DEVNULL)
    assert wait_for(marker.exists, 60)
    kernel = int(marker.read_text())
    os.kill(process.pid, sign)
    assert process.wait(30) != 0
    assert not out.exists()
    assert wait_for(lambda: not alive(kernel)), "the kernel outlived its runner"
    execute(path, out)
    assert files(out.parent) == [out.name] and marker.exists()


def test_prepare_writes_parameters_and_runs_nothing(notebook, tmp_path):
    path = notebook("raise SystemExit")
    copy = prepare(path, tmp_path / "copies" / path.name, {"size": "tiny"})
    cells = nbformat.read(copy, as_version=4).cells
    (injected,) = (cell for cell in cells if "injected-parameters" in runner.tags(cell))
    assert 'size = "tiny"' in injected.source
    assert not any(cell.get("outputs") for cell in cells)


def compared(path):
    """Tag the last cell of a notebook to be compared."""
    nb = nbformat.read(path, as_version=4)
    nb.cells[-1].metadata["tags"] = [runner.COMPARED]
    nbformat.write(nb, path)
    return path


def test_a_changed_digit_fails_and_the_same_digits_pass(notebook, out, tmp_path):
    path, folder = compared(notebook("print(size, 41 + 1)\n6 * 7")), tmp_path / "references"
    reference(execute(path, out, {"size": "tiny"}), path, folder)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q"]
    command += ["-p", "no:randomly", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    for source, code in (("6 * 7", 0), ("6 * 8", 1)):
        path.write_text(path.read_text().replace("6 * 7", source))
        copy = prepare(path, tmp_path / source / path.name, {"size": "tiny"}, folder)
        done = subprocess.run([*command, str(copy)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stdout
    assert "42" in done.stdout and "48" in done.stdout


def test_what_cannot_be_compared_is_refused_when_it_is_recorded(notebook, out, tmp_path):
    path = compared(notebook("import sys\nprint(1, file=sys.stderr)"))
    with pytest.raises(RunnerError, match="has no text to compare"):
        reference(execute(path, out), path, tmp_path)
    with pytest.raises(RunnerError, match="has no reference"):
        prepare(path, tmp_path / "copy" / path.name, {}, tmp_path)


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def test_coalesce_joins_neighbours_only():
    shown = new_output("display_data", data={"text/plain": "x"})
    pieces = [stream("a"), stream("b\n"), shown, stream("c"), stream("e", "stderr")]
    (cell,) = coalesce(new_notebook(cells=[new_code_cell("", outputs=pieces)])).cells
    assert [o.get("text", "shown") for o in cell.outputs] == ["ab\n", "shown", "c", "e"]


def test_coalesce_keeps_the_last_state_of_a_progress_bar():
    pieces = [stream(f"\r{i} %\x1b[A", "stderr") for i in range(100)]
    pieces += [stream("\r100 %\n", "stderr"), stream("\r  1 %"), stream("\r      \r")]
    (cell,) = coalesce(new_notebook(cells=[new_code_cell("", outputs=pieces)])).cells
    assert [output.text for output in cell.outputs] == ["100 %\n"]


def executed_notebook(folder, outputs):
    folder.mkdir(exist_ok=True)
    cells = [new_markdown_cell("# Title"), new_code_cell("draw()", outputs=outputs)]
    nbformat.write(new_notebook(cells=cells), folder / "01-small-test.ipynb")
    nbformat.write(new_notebook(), folder / "02-other.part.ipynb")


def test_report_writes_text_and_figures(tmp_path):
    figure = new_output("display_data", data={"image/png": "iVBORw0KGgo=", "text/plain": "fig"})
    style = "<div>\n<style scoped>\n    .dataframe {}\n</style>\n<table></table>\n</div>"
    table = new_output("display_data", data={"text/html": style})
    root = f"read {runner.project_root().resolve()}/data/x.parquet\n"
    executed_notebook(tmp_path / "run", [stream(root), stream("9 %", "stderr"), figure, table])
    (text,) = report(tmp_path / "run", tmp_path / "report")
    body = text.read_text()
    (picture,) = (tmp_path / "report" / "01-small-test_files").iterdir()
    assert f"](01-small-test_files/{picture.name})" in body
    assert picture.read_bytes() == b"\x89PNG\r\n\x1a\n"
    assert "read data/x.parquet" in body and "<table>" in body
    assert "9 %" not in body and "<style" not in body


def test_report_refuses_a_failed_cell_and_an_empty_folder(tmp_path):
    executed_notebook(tmp_path / "run", [new_output("error", ename="E", evalue="", traceback=[])])
    with pytest.raises(RunnerError, match="failed cell"):
        report(tmp_path / "run", tmp_path / "report")
    with pytest.raises(RunnerError, match="no executed notebook"):
        report(tmp_path / "nothing", tmp_path / "report")


def test_strip_leaves_code_and_tags(notebook):
    path = notebook("print(1)")
    nb = nbformat.read(path, as_version=4)
    nb.metadata.update(
        vscode={"interpreter": "x"}, language_info={"name": "python", "version": "3"}
    )
    nb.cells[2].update(outputs=[stream("1\n")], execution_count=4)
    nb.cells[2].metadata["collapsed"] = True
    nbformat.write(nb, path)
    strip(path)
    nb = nbformat.read(path, as_version=4)
    assert nb.cells[2].outputs == [] and nb.cells[2].execution_count is None
    assert nb.cells[2].metadata == {} and nb.cells[1].metadata == {"tags": ["parameters"]}
    assert set(nb.metadata) == {"kernelspec", "language_info"}
    assert nb.metadata.language_info == {"name": "python"}
    before = path.read_bytes()
    strip(path)
    assert path.read_bytes() == before
