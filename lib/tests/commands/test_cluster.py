"""Dask workers change where work is done and nothing else; real processes on the loopback."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from distributed import Client
from nbformat.v4 import new_code_cell, new_notebook

import citypaths
from citypaths.data import dataset, workers
from citypaths.data.dataset import make_dataset
from citypaths.data.workers import AHEAD, ClusterError, connected, spread
from citypaths.files import sha256
from citypaths.judging import ledger as results
from commands import cluster
from commands.cluster import sweep
from commands.notebooks import RunnerError

LIBRARY = Path(citypaths.__file__).parents[1]
SMALL, SHARDS = 4, 93  # targets a shard, and so many shards of Tennessee
log = logging.getLogger("citypaths.tests")


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Loopback:
    """A Dask scheduler and its workers: processes on this machine, killed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers, self.begun = folder, {}, 0
        self.scheduler = self.address = self.client = None

    def need(self, count: int) -> str:
        """Have so many workers, begun and killed as it takes, and return the address."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.stop()
            self.begin()
        for worker in [*self.workers.values()][count:]:
            kill(worker)
        self.workers = {n: worker for n, worker in self.workers.items() if worker.poll() is None}
        while len(self.workers) < count:
            self.worker()
        wait_until(lambda: self.known().keys() == self.workers.keys())
        return self.address

    def begin(self) -> None:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        words = ("--port", 0, "--scheduler-file", file)
        self.scheduler = self.start("scheduler", *words)
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        self.address = json.loads(file.read_text())["address"]
        self.client = Client(self.address, set_as_default=False)

    def worker(self, library: Path = LIBRARY) -> subprocess.Popen:
        self.begun += 1
        name = f"worker-{self.begun}"
        words = ("--name", name, "--nthreads", 1, "--no-nanny", "--local-directory", self.folder)
        self.workers[name] = self.start("worker", self.address, *words, library=library)
        return self.workers[name]

    def start(self, *words, library: Path = LIBRARY) -> subprocess.Popen:
        page = ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
        command = [sys.executable, "-m", "dask", *map(str, words), "--host", "127.0.0.1", *page]
        environment = os.environ | {"PYTHONPATH": str(library), "OMP_NUM_THREADS": "1"}
        with open(self.folder / "log", "a") as file:
            options = {"env": environment, "stdout": file, "stderr": file, "cwd": self.folder}
            return subprocess.Popen(command, start_new_session=True, **options)

    def known(self) -> dict[str, str]:
        """The addresses of the workers that the scheduler knows, by name."""
        told = self.client.scheduler_info(n_workers=-1)["workers"]
        return {worker["name"]: address for address, worker in told.items()}

    def in_hand(self, name: str) -> int:
        """Tasks that a worker was given or has finished, and that were not fetched."""
        address = self.known()[name]
        keys = [*self.client.processing()[address], *self.client.has_what()[address]]
        return sum(str(key).startswith("_checked") for key in keys)

    def stop(self) -> None:
        if self.scheduler is not None:
            self.client.close(timeout=2)
            for process in (*self.workers.values(), self.scheduler):
                kill(process)


def kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    """One cluster for all tests; each says how many workers it needs."""
    own = Loopback(tmp_path_factory.mktemp("dask"))
    try:
        yield own
    finally:
        own.stop()


@pytest.fixture
def pair(loopback):
    """The address of a scheduler with two workers."""
    return loopback.need(2)


@pytest.fixture(scope="module")
def plain(tiny_dataset, tennessee, tmp_path_factory):
    """The tiny dataset in many small shards, made in this process."""
    folder = tmp_path_factory.mktemp("plain")
    make_dataset(tennessee, tiny_dataset.recipe, folder, SMALL)
    return digests(folder)


@pytest.fixture
def slow_disk(monkeypatch):
    """Let every file written here take its time, so that there is a middle to disturb."""
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.01), flush(file)))


@pytest.fixture
def long_tasks(monkeypatch, tmp_path):
    """Let a shard take long enough for every worker to be given some; they leave their marks."""
    real, marks = dataset.make_shard, tmp_path

    def slowly(*given):
        (marks / f"{os.getpid()}.mark").touch()
        time.sleep(0.06)
        return real(*given)

    monkeypatch.setattr(dataset, "make_shard", slowly)


def took_part(folder: Path) -> set[int]:
    """The processes that made shards."""
    return {int(path.stem) for path in folder.glob("*.mark")}


@pytest.fixture
def nowhere():
    """An address where nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    return f"tcp://127.0.0.1:{port}"


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.iterdir() if p.name != ".lock")
    return {path.name: sha256(path) for path in files}


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


@contextmanager
def meanwhile(function, *args):
    """Do something else while the block runs, and fail when that fails."""
    errors = []

    def run() -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not errors, errors


# Datasets


def test_one_worker_or_two_write_the_bytes_of_none(
    loopback, long_tasks, tiny_dataset, tennessee, tmp_path
):
    args = (tennessee, tiny_dataset.recipe)
    one = make_dataset(*args, tmp_path / "1", 16, loopback.need(1))
    assert len(took_part(tmp_path)) == 1
    loopback.need(2)
    two = make_dataset(*args, tmp_path / "2", 16, loopback.client)
    assert took_part(tmp_path) == {worker.pid for worker in loopback.workers.values()}
    assert digests(one.folder) == digests(two.folder) == digests(tiny_dataset.folder)
    assert len(digests(one.folder)) == 25 and one.counts == tiny_dataset.counts


def test_a_killed_worker_changes_no_byte(
    loopback, pair, plain, long_tasks, tiny_dataset, tennessee, tmp_path
):
    name, doomed = list(loopback.workers.items())[-1]
    folder, seen = tmp_path / "spd", {}

    def kill_midway() -> None:
        wait_until(lambda: len(shards(folder)) >= 20 and doomed.pid in took_part(tmp_path))
        doomed.send_signal(signal.SIGSTOP)  # so that what it has in hand stays there
        try:
            wait_until(lambda: loopback.in_hand(name), 20)
            seen["lost"] = loopback.in_hand(name)
        finally:
            kill(doomed)
        seen["written"] = len(shards(folder))

    with meanwhile(kill_midway):
        make_dataset(tennessee, tiny_dataset.recipe, folder, SMALL, pair)
    assert doomed.returncode == -signal.SIGKILL and len(loopback.known()) == 1
    assert seen["lost"] > 0 and 20 <= seen["written"] < SHARDS == len(shards(folder))
    assert digests(folder) == plain
    log.info("SIGKILL: %(lost)d shards in hand, %(written)d written", seen)
    log.info("%d shards and the manifest equal those made without workers", len(plain) - 1)


def test_what_a_worker_raises_is_raised_here(
    pair, plain, tiny_dataset, tennessee, tmp_path, monkeypatch
):
    real = dataset.make_shard

    def break_late(graph, name, recipe, start, stop):
        if start == 200:
            raise ValueError(f"the worker has no memory for target {start}")
        return real(graph, name, recipe, start, stop)

    args = (tennessee, tiny_dataset.recipe, tmp_path, SMALL, pair)
    monkeypatch.setattr(dataset, "make_shard", break_late)
    with pytest.raises(ValueError, match="no memory for target 200"):
        make_dataset(*args)
    kept = {path: path.stat().st_ino for path in shards(tmp_path)}
    assert 20 < len(kept) < SHARDS
    monkeypatch.undo()
    make_dataset(*args)
    assert {path: path.stat().st_ino for path in kept} == kept, "finished shards stay"
    assert digests(tmp_path) == plain


def test_only_missing_shards_are_made(pair, tiny_dataset, tennessee, tmp_path, nowhere):
    copy = shutil.copytree(tiny_dataset.folder, tmp_path / "copy")
    gone = shards(copy)[3:6]
    for path in gone:
        path.unlink()
    before = {path: path.stat().st_ino for path in shards(copy)}
    make_dataset(tennessee, tiny_dataset.recipe, copy, 16, pair)
    assert {path: path.stat().st_ino for path in before} == before
    assert digests(copy) == digests(tiny_dataset.folder)
    make_dataset(tennessee, tiny_dataset.recipe, copy, 16, nowhere)  # asks for no cluster


def test_few_jobs_are_out_at_once(pair):
    given, done = [], set()
    jobs = ((given.append(i) or i,) for i in range(50))
    with connected(pair) as client:
        for result in spread(client, str, jobs):
            done.add(result)
            assert len(given) < AHEAD * 2 + len(done)
    assert done == {str(job) for job in given} and len(given) == 50


def test_a_cluster_on_this_machine(tiny_dataset, tennessee, tmp_path):
    make_dataset(tennessee, tiny_dataset.recipe, tmp_path, 16, "local")
    assert digests(tmp_path) == digests(tiny_dataset.folder)


# A cluster that is not there


def test_an_unreachable_scheduler_is_told_soon(
    nowhere, tiny_dataset, tennessee, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=rf"no Dask scheduler answers at {nowhere}"):
        make_dataset(tennessee, tiny_dataset.recipe, tmp_path, 16, nowhere)
    assert time.monotonic() - began < 10
    assert not shards(tmp_path)


def test_without_the_extra_the_message_tells_what_to_install(
    tiny_dataset, tennessee, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r'pip install "citypaths\[cluster\]"'):
        make_dataset(tennessee, tiny_dataset.recipe, tmp_path / "far", 16, "tcp://127.0.0.1:8786")
    make_dataset(tennessee, tiny_dataset.recipe, tmp_path / "here", 64)


def test_dask_is_imported_only_when_asked_for():
    code = "import sys, commands.cluster as _; sys.exit({!r} in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code.format("distributed")], cwd=LIBRARY)
    assert done.returncode == 0


# Sweeps

NOTEBOOK = """
import numpy as np
from citypaths import files, sizes
from citypaths.judging import ledger
assert not list(files.reports_dir().rglob("*.json")), "another run's ledger"
assert seed != 2, "seed two is not for us"
draw = np.random.default_rng([seed, *style.encode()]).random()
row = {"regime": "checked", "family": "sample", "method": style, "success": draw}
ledger.record("97-sweep", sizes.get_size(size), seed, [row], queries=7)
"""


@pytest.fixture
def notebook(tmp_path):
    return written(tmp_path, NOTEBOOK)


def written(folder: Path, *sources: str) -> Path:
    parameters = 'size = "tiny"\nseed = 0\nstyle = "plain"'
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nb = new_notebook(cells=[tagged, *map(new_code_cell, sources)])
    nb.metadata.kernelspec = {"display_name": "x", "language": "python", "name": "python3"}
    nbformat.write(nb, folder / "97-sweep.ipynb")
    return folder / "97-sweep.ipynb"


@pytest.fixture
def ledger(monkeypatch, tmp_path):
    """Return a function that begins an empty ledger and gives its folder."""

    def begin(name: str) -> Path:
        monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path / name))
        return tmp_path / name

    begin("reports")
    return begin


def test_a_sweep_on_workers_files_the_rows_of_runs_one_by_one(
    pair, notebook, ledger, tmp_path, nowhere, monkeypatch
):
    alone = ledger("alone")
    expected = sweep(notebook, {"seed": [0, 1]}, tmp_path / "alone-out")
    assert len(expected) == 2 and expected["success"].nunique() == 2
    spread_out, out = ledger("spread"), tmp_path / "out"
    with pytest.raises(RunnerError, match=r"(?s)^1 of 3 runs failed\nseed=2: 97-.*seed two"):
        sweep(notebook, {"seed": [0, 1, 2]}, out, pair)
    assert (spread_out / "results.csv").read_bytes() == (alone / "results.csv").read_bytes()
    names = sorted(path.name for path in out.glob("*.ipynb"))
    assert [name[:14] for name in names] == ["97-sweep-seed0", "97-sweep-seed1", "97-sweep-seed2"]
    assert names[2].endswith(".failed.ipynb") and not names[1].endswith(".failed.ipynb")
    again = sweep(notebook, {"seed": [0, 1]}, out, nowhere)  # nothing is left to run
    pd.testing.assert_frame_equal(again, expected)
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    with pytest.raises(ClusterError):  # an edited notebook is run again
        sweep(written(tmp_path, NOTEBOOK, "draw"), {"seed": [0, 1]}, out, nowhere)


def test_points_of_one_size_and_seed_keep_rows_of_their_own(
    notebook, ledger, tmp_path, monkeypatch
):
    def pretend(name, source, parameters):
        row = {"regime": "checked", "family": "sample", "method": parameters["style"]}
        record = {"run": "97-sweep-tiny-seed0", "rows": [row]}
        return name, source, [record], ""

    monkeypatch.setattr(cluster, "run_apart", pretend)
    rows = sweep(notebook, {"style": ["plain", "loud"], "size": ["tiny"]}, tmp_path / "out")
    assert rows["method"].tolist() == ["plain", "loud"] and rows["run"].nunique() == 2
    assert set(results.load_results()["run"]) == set(rows["run"])


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"sede": [0]}, "no parameter sede; did you mean seed"),
        ({"seed": 3}, "a list of values for seed, not 3"),
        ({"size": "tiny"}, "a list of values for size, not 'tiny'"),
        ({"seed": []}, "a list of values for seed"),
        ({"seed": [{1, 2}]}, "plain values"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(grid, message, notebook, tmp_path, nowhere):
    with pytest.raises(RunnerError, match=message):
        sweep(notebook, grid, tmp_path / "out", nowhere)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("run", ["../up", "", "a/b", ".hidden"])
def test_a_record_with_a_foreign_name_is_refused(run, ledger):
    with pytest.raises(ValueError, match="a run is named with letters"):
        results.file_record({"run": run, "rows": []})


# The command line


def test_generate_from_the_command_line(pair, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    assert cluster.main(["generate", "--size", "tiny", "--client", pair]) == 0
    told = capsys.readouterr().out
    assert "train" in told and "in 2 shards" in told
    assert len(list(tmp_path.glob("data/tiny-*/spd-pair-*/shard-*.arrow"))) == 2


def test_the_command_line_fails_in_few_words(
    notebook, ledger, tmp_path, capsys, nowhere, monkeypatch
):
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    words = ["sweep", str(notebook), "--out", str(tmp_path / "out"), "--client", nowhere]
    assert cluster.main([*words, "-g", "seed", "0"]) == 1
    assert "\nerror: no Dask scheduler answers at" in capsys.readouterr().err
    assert cluster.main([*words, "-g", "seed"]) == 1
    assert "a list of values for seed, not []" in capsys.readouterr().err


def test_a_grid_is_read_as_papermill_reads_values():
    words = ["0", "1e-3", "small", "no", "[2, 3]", "{connected_km: 25}"]
    read = [cluster.read_value(word) for word in words]
    assert read == [0, 1e-3, "small", "no", [2, 3], {"connected_km": 25}]


# Clusters that come and go; last, since two workers are wanted above


def test_when_every_worker_is_gone_a_new_one_goes_on(
    loopback, slow_disk, plain, tiny_dataset, tennessee, tmp_path
):
    address = loopback.need(1)
    (first,) = loopback.workers.values()
    seen = {}

    def replace() -> None:
        wait_until(lambda: len(shards(tmp_path)) >= 10)
        kill(first)
        wait_until(lambda: not loopback.known())
        seen["written"] = len(shards(tmp_path))
        loopback.worker()

    with meanwhile(replace):
        make_dataset(tennessee, tiny_dataset.recipe, tmp_path, SMALL, address)
    assert 10 <= seen["written"] < SHARDS
    assert digests(tmp_path) == plain


def test_a_lost_scheduler_is_told_and_the_next_call_goes_on(
    loopback, slow_disk, plain, tiny_dataset, tennessee, tmp_path
):
    args = (tennessee, tiny_dataset.recipe, tmp_path, SMALL)
    address = loopback.need(1)

    def lose() -> None:
        wait_until(lambda: len(shards(tmp_path)) >= 10)
        kill(loopback.scheduler)

    began = time.monotonic()
    with meanwhile(lose), pytest.raises(ClusterError, match="scheduler is gone .* same call goes"):
        make_dataset(*args, address)
    assert time.monotonic() - began < 45
    kept = {path: path.stat().st_ino for path in shards(tmp_path)}
    assert 10 <= len(kept) < SHARDS
    make_dataset(*args)
    assert {path: path.stat().st_ino for path in kept} == kept, "finished shards stay"
    assert digests(tmp_path) == plain


def test_a_worker_of_another_checkout_is_refused(loopback, tiny_dataset, tennessee, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(LIBRARY / "citypaths", other / "citypaths")
    with open(other / "citypaths" / "data" / "splits.py", "a") as file:
        file.write("\n# Not what it was.\n")
    address, mine = loopback.need(0), workers.software()["citypaths"]
    worker = loopback.worker(library=other)
    with pytest.raises(ClusterError, match=rf"other software \(citypaths \w+, not {mine}\)"):
        make_dataset(tennessee, tiny_dataset.recipe, tmp_path / "spd", 16, address)
    assert not shards(tmp_path / "spd")
    kill(worker)


def test_a_scheduler_without_workers_is_told_soon(loopback, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    address = loopback.need(0)
    told = pytest.raises(ClusterError, match=f"no worker: start one with `dask worker {address}`")
    with told, connected(address):
        pass
