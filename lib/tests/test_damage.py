"""What is damaged is noticed, says what to do, and is whole again when that was done.

`python lib/tests/test_damage.py` prints what was damaged and what it said, as in
reports/reliability.md.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from small_project import (
    FILES,
    READERS,
    SETTINGS,
    contents,
    dataset_of,
    everything,
    path_of,
    project,
    recipe_of,
    tennessee,
    work,
)

import citypaths
from citypaths import files
from citypaths.data.dataset import Dataset, make_dataset
from citypaths.data.splits import Recipe
from citypaths.files import DataFileError, atomic_write, read_json, sealed, write_json
from citypaths.judging.ledger import record
from citypaths.map.graph import CityGraph, build_graph
from citypaths.sizes import SIZES
from citypaths.training.checkpoints import load_history
from citypaths.training.loop import train
from commands.notebooks import RunnerError, execute

LIBRARY = Path(citypaths.__file__).resolve().parents[1]
BEAM = {"regime": "checked", "family": "beam"}
PAGE = LIBRARY.parent / "reports" / "reliability.md"
REMEDY = re.compile(r"delete|restore|run notebook|makes it|train the model|free disk space", re.I)


# Ways to damage it: each takes the project's folder


def rewrite(kind: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(home: Path) -> None:
        path = path_of(home, kind)
        path.write_bytes(change(path.read_bytes()))

    return damage


def edit(kind: str, change: Callable[[dict], Any], seal: bool = False) -> Callable[[Path], None]:
    """Change a JSON file's content; with `seal`, its checksum is made to fit."""

    def damage(home: Path) -> None:
        value = change(read_json(path_of(home, kind), "work"))
        write_json(path_of(home, kind), sealed(value) if seal else value)

    return damage


def entry(change: dict) -> Callable[[dict], dict]:
    """Change what the manifest says of one shard."""

    def changed(manifest: dict) -> dict:
        shards = manifest["shards"]
        shards["shard-0001.arrow"] = shards["shard-0001.arrow"] | change
        return manifest

    return changed


def head(change: Callable[[dict], dict | None], cut: str = "") -> Callable[[Path], None]:
    """Change a checkpoint's JSON head, and leave a tensor out."""

    def damage(home: Path) -> None:
        path = path_of(home, "checkpoint")
        with safe_open(path, framework="pt") as file:
            run = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys() if key != cut}  # noqa: SIM118
        save_file(tensors, path, metadata={"run": json.dumps(change(run))})

    return damage


def another_dataset(home: Path, recipe: Recipe, graph: CityGraph) -> Dataset:
    return make_dataset(graph, recipe, home.parent / f"other-{recipe.graph[:6]}-{recipe.seed}", 128)


def shard_of_another_recipe(home: Path) -> None:
    other = another_dataset(home, replace(recipe_of(tennessee()), seed=6), tennessee())
    shutil.copy(other.folder / "shard-0001.arrow", home / "spd")


def manifest_of_another_recipe(home: Path) -> None:
    other = another_dataset(home, replace(recipe_of(tennessee()), seed=6), tennessee())
    shutil.copy(other.folder / "manifest.json", home / "spd")


def two_way() -> CityGraph:
    return build_graph(tennessee().cities, 30, "two_way")


def shard_of_another_graph(home: Path) -> None:
    other = another_dataset(home, recipe_of(two_way()), two_way())
    shutil.copy(other.folder / "shard-0001.arrow", home / "spd")


def dataset_of_another_graph(home: Path) -> None:
    other = another_dataset(home, recipe_of(two_way()), two_way())
    shutil.rmtree(home / "spd")
    shutil.copytree(other.folder, home / "spd")


def checkpoint_of_another_dataset(home: Path) -> None:
    other = another_dataset(home, replace(recipe_of(tennessee()), seed=6), tennessee())
    train("rnn", other, home.parent / "other-model", SETTINGS, {"width": 4})
    shutil.copy(home.parent / "other-model" / "checkpoint.safetensors", home / "model")


def checkpoint_of_another_graph(home: Path) -> None:
    other = another_dataset(home, recipe_of(two_way()), two_way())
    train("rnn", other, home.parent / "two-way-model", SETTINGS, {"width": 4})
    shutil.copy(home.parent / "two-way-model" / "checkpoint.safetensors", home / "model")


def copied_run(home: Path) -> None:
    shutil.copy(path_of(home, "ledger run"), home / "reports" / "runs" / "03-x-tiny-seed2.json")


def ledger_row(**change: Any) -> Callable[[dict], dict]:
    return lambda body: body | {"rows": [body["rows"][0] | change]}


def keys_of(kind: str) -> tuple[str, ...]:
    names = {"manifest": ("recipe", "shards", "version", "complete", "targets_per_shard", "sha256")}
    return names.get(kind, ("history", "sha256"))


CASES: dict[str, Callable[[Path], None]] = {}
for _kind in FILES:
    CASES |= {
        f"{_kind}: cut in half": rewrite(_kind, lambda data: data[: len(data) // 2]),
        f"{_kind}: its last byte gone": rewrite(_kind, lambda data: data[:-2]),
        f"{_kind}: emptied": rewrite(_kind, lambda data: b""),
        f"{_kind}: all zeros": rewrite(_kind, lambda data: bytes(len(data))),
        f"{_kind}: another file's text": rewrite(_kind, lambda data: b"id,name\n1,Raleigh\n"),
        f"{_kind}: a list instead": rewrite(_kind, lambda data: b"[1, 2]"),
    }
for _kind in ("manifest", "history"):
    for _key in keys_of(_kind):
        CASES[f"{_kind}: without {_key}"] = edit(
            _kind, lambda value, key=_key: {k: v for k, v in value.items() if k != key}
        )
CASES |= {
    "shard: of another recipe": shard_of_another_recipe,
    "shard: of another graph": shard_of_another_graph,
    "shard: its neighbour's": lambda home: shutil.copy(
        home / "spd" / "shard-0000.arrow", path_of(home, "shard")
    ),
    "shard: gone": lambda home: path_of(home, "shard").unlink(),
    "dataset: of another graph": dataset_of_another_graph,
    "manifest: of another recipe": manifest_of_another_recipe,
    "manifest: of an older version": edit(
        "manifest", lambda m: {k: v for k, v in m.items() if k != "sha256"} | {"version": 1}
    ),
    "manifest: recipe a number": edit("manifest", lambda m: m | {"recipe": 3}),
    "manifest: shards a list": edit("manifest", lambda m: m | {"shards": []}, seal=True),
    "manifest: no recipe, with a checksum": edit("manifest", lambda m: m | {"recipe": {}}, True),
    "manifest: another seed": edit("manifest", lambda m: m | {"recipe": m["recipe"] | {"seed": 6}}),
    "manifest: a shard's rows miscounted": edit("manifest", entry({"train": 9})),
    "manifest: a shard's entry a number": edit(
        "manifest", lambda m: m | {"shards": m["shards"] | {"shard-0001.arrow": 3}}
    ),
    "manifest: a shard's checksum changed": edit("manifest", entry({"sha256": "0" * 64})),
    "manifest: another key": edit("manifest", lambda m: m | {"more": 1}, seal=True),
    "manifest: unfinished": edit("manifest", lambda m: m | {"complete": False}, seal=True),
    "checkpoint: without a checksum": head(
        lambda run: {k: v for k, v in run.items() if k != "sha256"}
    ),
    "checkpoint: a counter changed": head(lambda run: run | {"step": 5}),
    "checkpoint: its head a list": head(lambda run: [1]),
    "checkpoint: a weight left out": head(lambda run: run, "model.inputs.embedding.weight"),
    "checkpoint: of another dataset": checkpoint_of_another_dataset,
    "checkpoint: of another graph": checkpoint_of_another_graph,
    "history: a loss changed": edit("history", lambda h: h | {"history": h["history"][1:]}),
    "ledger run: a number changed": edit("ledger run", ledger_row(success=0.75)),
    "ledger run: rows a number": edit("ledger run", lambda body: body | {"rows": 3}),
    "ledger run: a share of 50": edit("ledger run", ledger_row(success=50.0), seal=True),
    "ledger run: a share in words": edit("ledger run", ledger_row(success="half"), seal=True),
    "ledger run: an unknown column": edit("ledger run", ledger_row(colour=1), seal=True),
    "ledger run: copied to another name": copied_run,
}


def complaint(home: Path, *uses: Callable[[Path], Any]) -> str:
    """What these uses, or reading everything and then going on, say first; "" when all is well."""
    for use in uses or (everything, work):
        try:
            use(home)
        except (DataFileError, OSError) as error:
            return str(error)
    return ""


def follow(message: str) -> None:
    """Do what a message tells: delete the file or the folder that it names."""
    path = Path(re.search(r"/\S+?(?=[\s:]|$)", message)[0])
    if told := re.search(r"delete (/\S+) to train anew", message):
        shutil.rmtree(told[1])
    elif "delete the folder" in message:
        shutil.rmtree(path if path.is_dir() else path.parent)
    elif "delete it" in message:
        path.unlink()
    else:
        assert re.search("run notebook|makes it|train the model", message), message


@pytest.mark.parametrize("case", CASES)
def test_damage_is_told_and_mended_by_doing_what_it_says(case, home, whole):
    CASES[case](home)
    before, messages = contents(home), [complaint(home)]
    assert contents(home) == before, "complaining changes no file"
    while messages[-1]:
        assert str(home) in messages[-1] and REMEDY.search(messages[-1]), messages
        assert len(messages) < 4, messages
        follow(messages[-1])
        messages.append(complaint(home, work, everything))
    assert messages[0], "nothing was said"
    assert "pickle" not in messages[0], "no advice to unpickle it"
    assert everything(home) == whole
    assert not list(home.rglob(".*.part"))


# Every bit


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_is_noticed_or_means_nothing(kind, home, whole):
    path, reader = path_of(home, kind), READERS[kind]
    expected, content = whole[list(READERS).index(kind)], path.read_bytes()
    draw = np.random.default_rng(11)
    start = [8 * at + bit for at in range(8) for bit in range(8)]
    noticed = 0
    places = [*start, *draw.integers(0, 8 * len(content), 200).tolist()]
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert reader(home) == expected, f"bit {place} changed what is read"
        except DataFileError as error:
            assert path.name in str(error)
            noticed += 1
    assert noticed > 0.6 * len(places), "the rest is padding, dates and the like"


def test_the_table_of_the_ledger_is_written_anew(home):
    table = home / "reports" / "results.csv"
    content = table.read_bytes()
    for spoilt in (b"", content[:50], b"\0" * 99, None):
        table.unlink() if spoilt is None else table.write_bytes(spoilt)
        work(home)
        assert table.read_bytes().count(b"\n") == content.count(b"\n") == 3


def test_half_written_rests_are_never_taken_and_are_removed(home, whole):
    for path in list(contents(home)):
        path.with_name(f".{path.name}.abc.part").write_bytes(path.read_bytes()[:40])
    assert everything(home) == whole
    work(home)
    left = {path.relative_to(home).as_posix() for path in home.rglob(".*.part")}
    assert left == {".graph.npz.abc.part"}, "the graph has no lock under which it could go"
    assert everything(home) == whole


# A full disk, and folders that are none


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_figure() -> None:
    from matplotlib import pyplot as plt

    from citypaths import lab

    figure, _ = plt.subplots()
    lab.save_figure(figure, "x")


def run_notebook(home: Path) -> None:
    cells = [nbformat.v4.new_code_cell("print('long' * 5000)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), home / "01-x.ipynb")
    execute(home / "01-x.ipynb", home / "executed" / "01-x.ipynb")


def write_run(notebook: str) -> Callable[[Path], Any]:
    return lambda home: record(notebook, SIZES["tiny"], 0, [BEAM])


def fill_ledger(home: Path) -> None:
    record("01-big", SIZES["tiny"], 0, [BEAM | {"method": "m" * 99}] * 200)


def train_anew(home: Path) -> None:
    train("rnn", dataset_of(home), home / "new-model", SETTINGS, {"width": 4})


# What is written, from what it starts, the name of the file, and how many bytes still fit.
WRITERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any], str, int]] = {
    "graph": (lambda home: tennessee().save(home / "graph.npz"), str, "graph.npz", 500),
    "shard": (
        lambda home: make_dataset(tennessee(), recipe_of(tennessee()), home / "new", 128),
        str,
        "new/shard-0000.arrow",
        2000,
    ),
    "manifest": (
        lambda home: make_dataset(tennessee(), recipe_of(tennessee()), home / "new", 128),
        str,
        "new/manifest.json",
        50,
    ),
    "checkpoint": (train_anew, str, "new-model/checkpoint.safetensors", 5000),
    "history": (train_anew, str, "new-model/history.json", 100),
    "ledger run": (write_run("03-x"), str, "runs/03-x-tiny-seed0.json", 100),
    "ledger table": (write_run("04-new"), fill_ledger, "reports/results.csv", 9000),
    "figure": (lambda home: save_figure(), str, "reports/figures/x.png", 1000),
    "executed notebook": (run_notebook, str, "executed/01-x.ipynb", 3000),
}


def fill_disk(home: Path) -> dict[str, str]:
    """Let every writer meet a full disk in a copy of `home`; return what each one says.

    Afterwards nothing that was there has changed, and with the disk free again it is written.
    """
    said = {}
    tennessee()
    for name, (write, begin, file, limit) in WRITERS.items():
        desk = shutil.copytree(home, home.parent / f"full-{name}")
        with project(desk):
            begin(desk)
            before = contents(desk)
            with full_disk(limit), pytest.raises((OSError, DataFileError, RunnerError)) as error:
                write(desk)
            said[name] = str(error.value).replace(f"{desk}/", "")
            assert file in said[name] and "ree disk space" in said[name], said
            assert before.items() <= contents(desk).items(), f"{name}: something was lost"
            assert not list(desk.rglob(".*.part")), name
            write(desk)
    return said


def program(*words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run this file as a program of its own, with the package that is tested."""
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    command = [*before, sys.executable, __file__, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_full_disk_is_named_and_loses_nothing(finished_project, tmp_path):
    """A limit on the size of files fails a write as a full disk does, for any user."""
    shutil.copytree(finished_project, tmp_path / "home")
    done = program("full-disk", str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.keys() == WRITERS.keys()


MOUNT = 'mount -t tmpfs -o size=96k tmpfs "$1" && shift && exec "$@"'


def test_a_disk_that_is_really_full(tmp_path):
    """Work in a file system of 96 kB, then in a larger one: where mounting is allowed."""
    private = ("unshare", "--mount", "--map-root-user", "sh", "-c", MOUNT, "sh", str(tmp_path))
    if not shutil.which("unshare") or subprocess.run([*private, "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    done = program("small-disk", str(tmp_path), before=private)
    assert done.returncode == 0, done.stderr[-3000:]
    message = done.stdout.splitlines()[-1]
    assert "No space left on device" in message and "Free disk space" in message
    assert re.search(r"graph\.npz|spd/|model/", message)


def small_disk(home: Path) -> str:
    """Work until the mounted disk is full, enlarge it, and work to the end."""
    with project(home):
        with pytest.raises(OSError) as error:
            work(home)
        assert not list(home.rglob(".*.part"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(home)], check=True)
        work(home)
        everything(home)
    return str(error.value)


@pytest.mark.parametrize("place", ["reports", "reports/runs"])
def test_reports_that_are_no_folder(home, place, whole):
    shutil.rmtree(home / place)
    (home / place).write_text("in the way")
    with pytest.raises(OSError, match=rf"make the folder writable.*{place}"):
        work(home)
    assert (home / place).read_text() == "in the way"
    (home / place).unlink()
    work(home)
    assert everything(home) == whole


def test_a_folder_that_goes_while_it_is_filled(home, whole, monkeypatch):
    def remove_first(path: Path):
        if path.name == "shard-0002.arrow":
            shutil.rmtree(path.parent)
        return atomic_write(path)

    shutil.rmtree(home / "spd")
    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_write", remove_first)
        with pytest.raises(DataFileError, match=r"spd lacks shard-0000.arrow: run notebook 02"):
            work(home)
    work(home)
    assert everything(home) == whole


def test_a_write_into_a_folder_that_went_leaves_what_is_elsewhere(tmp_path):
    path = tmp_path / "gone" / "file"
    with pytest.raises(OSError, match=r"it was not written.*gone/file"), atomic_write(path) as part:
        part.write_text("x")
        shutil.rmtree(path.parent)
    assert not path.exists()


def test_an_error_about_another_file_keeps_its_own_words(tmp_path):
    other = tmp_path / "other"
    with pytest.raises(FileNotFoundError) as error, atomic_write(tmp_path / "file") as part:
        part.write_bytes(other.read_bytes())
    assert error.value.filename == str(other) and "not written" not in str(error.value)


def test_what_is_deleted_beside_a_finished_checkpoint_is_made_again(home, whole):
    path_of(home, "history").unlink()
    with pytest.raises(DataFileError, match="history.json is missing: training makes it"):
        load_history(home / "model")
    work(home)
    assert everything(home) == whole


def test_runs_without_a_checksum_are_those_of_an_older_version(home, whole):
    edit("ledger run", lambda body: {k: v for k, v in body.items() if k != "sha256"})(home)
    assert everything(home) == whole


# Two at once


def test_two_at_once_make_one_project(tmp_path, whole):
    """Both make the graph, the dataset, a training and the ledger, in one folder."""
    done = program("at-once", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    with project(tmp_path):
        assert everything(tmp_path) == whole
    assert not list(tmp_path.rglob(".*.part"))


def at_once(home: Path) -> None:
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            status = 1
            try:
                with project(home):
                    work(home)
                status = 0
            finally:
                os._exit(status)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


# The page


def say(home: Path) -> dict[str, str]:
    """What every kind of damage to copies of the project in `home` says, without its folder."""
    said = {}
    for case, damage in CASES.items():
        desk = home.parent / "desk" / "home"
        shutil.copytree(home, desk)
        with project(desk):
            damage(desk)
            said[case] = complaint(desk).replace(f"{desk}/", "")
        shutil.rmtree(desk.parent)
    full = json.loads(program("full-disk", str(home)).stdout.splitlines()[-1])
    return said | {f"{name}: written to a full disk": text for name, text in full.items()}


def table(said: dict[str, str]) -> str:
    """The cases as Markdown, one line each."""
    lines = ["| what was damaged | what it says |", "|---|---|"]
    for case, text in said.items():
        plain = " ".join(text.replace("|", "\\|").split())
        lines.append(f"| {case} | {plain} |")
    return "\n".join(lines)


def test_the_page_lists_every_case():
    page = PAGE.read_text(encoding="utf-8")
    cases = [*CASES, *(f"{name}: written to a full disk" for name in WRITERS)]
    assert [case for case in cases if f"\n| {case} | " not in page] == []
    listed = re.findall(r"\n\| ([^|]+: [^|]+) \| ", page)
    assert sorted(listed) == sorted(cases), "the page lists what is no longer tested"


def print_table() -> str:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        home.mkdir()
        with project(home):
            work(home)
        return table(say(home))


PROGRAMS: dict[str, Callable[..., Any]] = {
    "full-disk": lambda home: json.dumps(fill_disk(Path(home))),
    "small-disk": lambda home: small_disk(Path(home)),
    "at-once": lambda home: at_once(Path(home)),
    "table": print_table,
}

if __name__ == "__main__":
    name, *words = sys.argv[1:] or ["table"]
    sys.stdout.write(f"{PROGRAMS[name](*words)}\n")
