"""kill -9 at random moments of generation, of training and of `make run`: it always resumes.

`make soak` kills each of them twenty times; the log tells the moments and what was there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

import citypaths
from citypaths.data.dataset import make_dataset, open_dataset
from citypaths.data.splits import Recipe
from citypaths.files import read_json, sha256, write_json
from citypaths.map.graph import load_graph

LIBRARY = Path(citypaths.__file__).resolve().parents[1]
ROOT = LIBRARY.parent
LOG = ROOT / "data" / "soak.log"
TIMED = {"commit", "dirty", "seconds_per_query", "threads"}  # ledger columns that may differ
SHIPPED = ("Makefile", "lib", "notebooks", "pyproject.toml", "environment.yml", "constraints.txt")


# The work: each function does it, or finishes it, in a folder


def prepare(home: Path) -> None:
    """Save a graph, a recipe and a finished dataset for the others to work with."""
    from citypaths.data.splits import recipe_for
    from citypaths.map.cities import load_cities
    from citypaths.map.graph import build_graph

    graph = build_graph(load_cities(states=["TN"]), 30)
    graph.save(home / "graph.npz")
    recipe = recipe_for(graph, train=20_000, valid=200, test=2_000, seed=5)
    write_json(home / "recipe.json", recipe.to_json())
    make_dataset(graph, recipe, home / "spd", 8)


def slow_disk() -> None:
    """Let every write of this process take its time, so that kills land inside writes."""
    flush = os.fsync

    def slow_flush(descriptor: int) -> None:
        time.sleep(0.01)
        flush(descriptor)

    os.fsync = slow_flush


def generate(home: Path, folder: Path) -> None:
    """Make a dataset of 47 shards."""
    slow_disk()
    recipe = Recipe(**read_json(home / "recipe.json", "prepare"))
    make_dataset(load_graph(home / "graph.npz"), recipe, folder, 8)


def train_model(home: Path, folder: Path) -> None:
    """Train a small network that draws random numbers everywhere, saving every twenty steps."""
    import torch

    from citypaths.training.loop import TrainSettings, train

    slow_disk()
    torch.set_num_threads(1)
    dataset = open_dataset(home / "spd", load_graph(home / "graph.npz"))
    settings = TrainSettings(
        steps=200, batch_tokens=256, evaluations=8, save_seconds=0, own_input=0.2, hindsight=0.3
    )
    train("rnn", dataset, folder, settings, {"width": 8, "endpoints": "prefix"})


def make_run(home: Path, folder: Path) -> None:
    """`make run SIZE=tiny` in a copy of the repository with no data."""
    if not folder.exists():
        for name in SHIPPED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            folder.mkdir(exist_ok=True)
            copy(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(sys.prefix)
    kept = ("CITYPATHS_REPORTS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in kept}
    environment |= {"CITYPATHS_HOME": str(folder), "PYTHONPATH": str(folder / "lib")}
    environment |= {name: str(home / name) for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.chdir(folder)
    with open(home / "make.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.execvpe("make", ["make", "run", "SIZE=tiny", "-o", ".venv/.ready"], environment)


# What it comes to, whole or not


def tensors_of(path: Path) -> dict[str, bytes]:
    """A checkpoint's weights, optimizer and random state, byte by byte."""
    from citypaths.training.checkpoints import read_checkpoint

    head, tensors = read_checkpoint(path)
    counters = {k: v for k, v in head.items() if k != "seconds"}
    return {k: v.numpy().tobytes() for k, v in tensors.items()} | {"head": json.dumps(counters)}


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on kills: shards, manifests, checkpoints and the ledger's rows."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".arrow" or path.name == "manifest.json":
            found[name] = sha256(path)
        elif path.suffix == ".safetensors":
            found[name] = tensors_of(path)
        elif path.parent.name == "runs" and path.suffix == ".json":
            rows = read_json(path, "a run")["rows"]
            found[name] = [{k: v for k, v in r.items() if k not in TIMED} for r in rows]
    return found


def open_arrow(path: Path) -> None:
    with pa.memory_map(str(path)) as file:
        pa.ipc.open_file(file).read_all()


def open_png(path: Path) -> None:
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path


def open_npz(path: Path) -> None:
    with np.load(path) as file:
        assert all(file[name].size >= 0 for name in file.files)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".arrow": open_arrow,
    ".json": lambda path: read_json(path, "anyone"),
    ".npz": open_npz,
    ".png": open_png,
    ".safetensors": tensors_of,
    ".ipynb": lambda path: read_json(path, "the runner"),
}


def products(folder: Path) -> Iterator[Path]:
    """Every file that work wrote in a folder under its final name."""
    places = [folder / "data", folder / "reports"] if (folder / "lib").exists() else [folder]
    for path in (path for place in places for path in place.rglob("*")):
        unfinished = path.name.endswith((".part", ".part.ipynb", ".failed.ipynb"))
        if path.is_file() and not unfinished and not path.name.endswith(".lock"):
            yield path


def look(folder: Path) -> str:
    """Open every file that bears a final name, and return how many of each kind there are."""
    count: dict[str, int] = {}
    for path in products(folder):
        OPENERS.get(path.suffix, Path.stat)(path)
        count[path.suffix] = count.get(path.suffix, 0) + 1
    parts = sorted(p.name.split(".")[1] for p in folder.rglob(".*.part"))
    listed = ", ".join(f"{n} {suffix[1:] or 'other'}" for suffix, n in sorted(count.items()))
    return f"{listed or 'nothing'}; half-written: {', '.join(parts) or 'nothing'}"


# Killing it


@dataclass
class Soak:
    """Kill one kind of work at random moments of its duration, and compare what it comes to."""

    name: str
    home: Path
    log: Callable[[str], None]

    @property
    def work(self) -> Callable[[Path, Path], None]:
        return {"generation": generate, "training": train_model, "make run": make_run}[self.name]

    def start(self, folder: Path) -> int:
        """Do the work in a child that leads a process group of its own, and return its id."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.setsid()
            self.work(self.home, folder)
            status = 0
        finally:
            os._exit(status)

    def live(self, folder: Path, seconds: float) -> bool:
        """Work for so many seconds, then kill all of it; return whether it ended before."""
        child, end = self.start(folder), time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, f"{self.name} fails after a kill: {status}"
                return True
            time.sleep(0.002)
        kill_tree(child)
        return False

    def finish(self, folder: Path, expected: dict[str, Any]) -> None:
        assert self.live(folder, 3600)
        found = outcome(folder)
        assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
        assert self.name == "make run" or not list(folder.rglob(".*.part"))
        self.log(f"{self.name}: resumed to the end, {len(found)} files equal; {look(folder)}")

    def run(self, kills: int, seed: int) -> dict[str, int]:
        """Kill so often, at moments spread over the whole duration; return what was met."""
        began, whole = time.monotonic(), self.home / "whole"
        assert self.live(whole, 3600)
        seconds = time.monotonic() - began
        expected, finished = outcome(whole), look(whole)
        self.log(f"{self.name}: undisturbed {seconds:.2f} s; {finished}")
        draw, tally, chain = random.Random(seed), {"kills": 0, "amid": 0, "inside a write": 0}, 0
        moments = [(i + draw.random()) / kills for i in range(kills)]
        draw.shuffle(moments)
        while moments:
            folder = self.home / f"killed-{chain}"
            fresh = not folder.exists()
            if self.live(folder, moments[-1] * seconds):  # it ended first: again from the start
                moments[-1] *= 0.9 if fresh else 1
                self.finish(folder, expected)
                chain += 1
                continue
            state, moment = look(folder), moments.pop()
            tally["kills"] += 1
            tally["amid"] += not state.startswith("nothing; half-written: nothing")
            tally["inside a write"] += not state.endswith(": nothing")
            self.log(f"{self.name}: kill {tally['kills']} at {moment * seconds:.2f} s; {state}")
        self.finish(self.home / f"killed-{chain}", expected)
        return tally | {"finished": chain + 1}


def kill_tree(child: int) -> None:
    """Kill a process group and all that descends from its leader, such as notebook kernels."""
    family = psutil.Process(child).children(recursive=True)
    os.killpg(child, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os.waitpid(child, 0)


def main(name: str, kills: str, seed: str, home: Path, log: Path) -> None:
    """Soak in this process, from which all that is killed is forked; print the tally."""
    import torch._dynamo  # noqa: F401  an optimizer imports it: once here, not in every child

    def write(line: str) -> None:
        with open(log, "a") as file:
            file.write(line + "\n")

    if name != "make run":
        child = os.fork()
        if not child:
            prepare(home)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    tally = Soak(name, home, write).run(int(kills), int(seed))
    write(f"{name}: " + ", ".join(f"{value} {key}" for key, value in tally.items()))
    sys.stdout.write(json.dumps(tally) + "\n")


def soak(name: str, kills: int, home: Path, log: Path) -> dict[str, int]:
    """Soak in a process of its own and return the tally."""
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, __file__, name, str(kills), "7", str(home), str(log)]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["generation", "training"])
def test_killed_work_resumes_to_the_same_bytes(name, tmp_path):
    tally = soak(name, 3, tmp_path, tmp_path / "log")
    assert tally["kills"] == 3 and tally["amid"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generation", "training", "make run"])
def test_twenty_kills_each_change_no_byte(name, tmp_path):
    tally = soak(name, 20, tmp_path, LOG)
    assert tally["kills"] == 20 and tally["amid"] >= 10


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(Path, sys.argv[4:6]))
