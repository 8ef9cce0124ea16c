"""Several processes train the model that one would; started by torchrun, killed, gone on from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import citypaths
from citypaths import lab
from citypaths.data.batches import batch_of
from citypaths.data.dataset import Dataset, open_dataset
from citypaths.files import DataFileError
from citypaths.map.graph import load_graph
from citypaths.models import build
from citypaths.sizes import get_size
from citypaths.training import loop as train_module
from citypaths.training.checkpoints import read_checkpoint
from citypaths.training.distributed import Team, join, leave
from citypaths.training.loop import Diverged, TrainSettings, train

SHORT = TrainSettings(steps=20, batch_tokens=301, evaluations=3, save_seconds=0)
MODEL = {"width": 16, "tied": True}
CASES = {
    "tied": (SHORT, MODEL),
    "fewer rows than ranks": (replace(SHORT, batch_tokens=20, hindsight=0.3), MODEL),
    "lstm": (SHORT, {"width": 8, "cell": "lstm", "softmaxes": 2, "coordinates": "raw"}),
}
RANDOM = (replace(SHORT, steps=60, own_input=0.2, hindsight=0.3), {"width": 8})
LIMIT = 150  # seconds for what takes a few; many on a busy machine
STARTED: list[subprocess.Popen] = []


class Stop(Exception):
    """What ends a run in the middle."""


# What runs under torchrun: python -m torch.distributed.run ... test_distributed.py ROOT WHAT


class Watched(train_module._Run):
    """A run that notes its losses and process, and stops, sleeps or is spoilt when told."""

    losses: ClassVar[list[float]] = []
    left, sleep, spoil, note = -1, 0.0, -1, ""

    def _advance(self, batch):
        if Watched.left == 0:
            raise Stop
        Watched.left -= 1
        if Watched.note:
            Path(f"{Watched.note}-{self.team.rank}").write_text(str(os.getpid()))
        if self.step == Watched.spoil and self.team.rank == 1:
            next(self.model.parameters()).data[0] = float("nan")
        time.sleep(Watched.sleep)
        loss = super()._advance(batch)
        Watched.losses.append(float(self.team.mean(loss.clone())))
        return loss


def told(**changes):
    """Set what the next run is told, all else back to nothing."""
    for key, value in ({"left": -1, "sleep": 0.0, "spoil": -1, "note": ""} | changes).items():
        setattr(Watched, key, value)


def same_as_one(root: Path, dataset: Dataset) -> None:
    """Train each case, then go on from one process's checkpoint, and leave one to go on from."""
    for name, (settings, model) in CASES.items():
        Watched.losses = []
        trained = train("rnn", dataset, root / "two" / name, settings, model, first_only)
        (root / f"losses-{name}-{join().rank}").write_text(json.dumps(Watched.losses))
        assert trained.steps == settings.steps and len(trained.history) == 1
    train("rnn", dataset, root / "one then two", SHORT, MODEL)
    told(left=9)
    with pytest.raises(Stop):
        train("rnn", dataset, root / "two then one", SHORT, MODEL)
    told()


def first_only(model) -> dict[str, float]:
    """An evaluation, which must not run on another rank."""
    assert join().first
    return {"valid_loss": float(sum(p.sum() for p in model.parameters()))}


def raises_everywhere(root: Path, dataset: Dataset) -> None:
    """Errors that every rank has to raise, as each writes down."""
    rank = join().rank
    told(spoil=7)
    with pytest.raises(Diverged) as error:
        train("rnn", dataset, root / "diverged", SHORT, MODEL)
    (root / f"diverged-{rank}").write_text(str(error.value))
    told()
    for name in ("damaged", "other"):
        with pytest.raises(DataFileError) as error:
            train("rnn", dataset, root / name, SHORT, MODEL)
        (root / f"{name}-{rank}").write_text(str(error.value))


def together(root: Path, dataset: Dataset) -> None:
    """All that needs no killing, in one start; rank 1 ends it with a broken shard of its own."""
    same_as_one(root, dataset)
    train("rnn", dataset, root / "whole", *RANDOM)
    raises_everywhere(root, dataset)
    (root / "broken at").write_text(str(time.time()))
    folder = root / "broken" if join().rank == 1 else dataset.folder
    train("rnn", open_dataset(folder, dataset.graph), root / "never", SHORT, MODEL)


def worker(root: Path, data: Path, what: str, note: str = "") -> None:
    torch.set_num_threads(1)
    train_module._Run, train_module.LOG_EVERY = Watched, 1
    dataset = open_dataset(data, load_graph(root / "graph.npz"))
    if what == "together":
        together(root, dataset)
    else:
        told(sleep=float(what), note=str(root / note) if note else "")
        train("rnn", dataset, root / "killed", *RANDOM)
    leave()


# The tests


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The order of sums, and so their last bits, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """A test that fails in the middle leaves no process behind."""
    yield
    for run in STARTED:
        run.terminate()  # torchrun ends its ranks; one that has ended is left alone
        run.wait(LIMIT)


def torchrun(log: Path, *command: str | Path) -> subprocess.Popen:
    """Start two ranks on this machine; what they print goes to a file."""
    start = ["torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc_per_node", "2"]
    path = str(Path(citypaths.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = (sys.executable, "-m", *start, *map(str, command))
    with open(log, "w") as file:
        run = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    STARTED.append(run)
    return run


def until(true: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end, f"{what}: not within {limit} s"
        time.sleep(0.05)


def contents(folder: Path) -> tuple[dict, dict]:
    """All that a checkpoint holds, but for the seconds it took."""
    head, tensors = read_checkpoint(folder / "checkpoint.safetensors")
    return {k: v for k, v in head.items() if k != "seconds"}, tensors


def farthest(a: Path, b: Path) -> float:
    """The largest difference between two checkpoints' weights, the rest being alike."""
    (head_a, tensors_a), (head_b, tensors_b) = contents(a), contents(b)
    assert [head_a[k] for k in ("identity", "position", "step", "tokens", "finished")] == [
        head_b[k] for k in ("identity", "position", "step", "tokens", "finished")
    ]
    assert tensors_a.keys() == tensors_b.keys()
    weights = [key for key in tensors_a if key.startswith("model.")]
    return max(float((tensors_a[key] - tensors_b[key]).abs().max()) for key in weights)


@pytest.fixture(scope="module")
def root(tiny_dataset, tmp_path_factory):
    """A folder with what one process leaves, then what two make of it in one start."""
    root = tmp_path_factory.mktemp("ranks")
    tiny_dataset.graph.save(root / "graph.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "_Run", Watched)
        patch.setattr(train_module, "LOG_EVERY", 1)
        for name, (settings, model) in CASES.items():
            told()
            Watched.losses = []
            train("rnn", tiny_dataset, root / "one" / name, settings, model, first_only)
            (root / f"losses-{name}").write_text(json.dumps(Watched.losses))
        told(left=9)
        with pytest.raises(Stop):
            train("rnn", tiny_dataset, root / "one then two", SHORT, MODEL)
        told()
    shutil.copytree(root / "one" / "tied", root / "damaged")
    (root / "damaged" / "checkpoint.safetensors").write_bytes(b"\0" * 4096)
    shutil.copytree(root / "one" / "lstm", root / "other")
    shutil.copytree(tiny_dataset.folder, root / "broken")
    (root / "broken" / "shard-0003.arrow").write_bytes(b"cut short")
    run = torchrun(root / "together.log", __file__, root, tiny_dataset.folder, "together")
    assert run.wait(LIMIT) == 1, (root / "together.log").read_text()[-3000:]
    (root / "ended at").write_text(str(time.time()))
    return root


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_does(root, name, record_property):
    one, *two = (
        json.loads((root / f"losses-{name}{rank}").read_text()) for rank in ("", "-0", "-1")
    )
    assert two[0] == two[1] and len(one) == len(two[0]) == 20
    record_property("largest difference of a loss", float(np.abs(np.subtract(two[0], one)).max()))
    assert two[0] == pytest.approx(one, abs=1e-5)
    apart = farthest(root / "one" / name, root / "two" / name)
    record_property("largest difference of a weight", apart)
    assert apart < 1e-4, "a step moves a weight by as much as 8e-3"


@pytest.mark.parametrize("name", ["one then two", "two then one"])
def test_another_number_of_processes_goes_on(root, tiny_dataset, name, record_property):
    if name == "two then one":
        assert contents(root / name)[0]["step"] == 9
        train("rnn", tiny_dataset, root / name, SHORT, MODEL)
    apart = farthest(root / "one" / "tied", root / name)
    record_property("largest difference of a weight", apart)
    assert apart < 1e-4


def test_trouble_of_one_rank_is_raised_on_all(root):
    messages = {(root / f"diverged-{rank}").read_text() for rank in (0, 1)}
    assert len(messages) == 1
    assert "the loss (nan) or a gradient is not finite at step 8; the last" in messages.pop()
    assert contents(root / "diverged")[0]["step"] == 7


def test_a_checkpoint_that_rank_0_refuses_is_refused_on_all(root):
    for name, says in (("damaged", "is no whole checkpoint"), ("other", "with other settings")):
        messages = {(root / f"{name}-{rank}").read_text() for rank in (0, 1)}
        assert len(messages) == 1 and says in messages.pop()


def test_a_broken_shard_of_one_rank_ends_all(root):
    assert "shard-0003.arrow fails its checksum" in (root / "together.log").read_text()
    assert not (root / "never" / "checkpoint.safetensors").exists()
    seconds = float((root / "ended at").read_text()) - float((root / "broken at").read_text())
    assert seconds < 20


def step_of(folder: Path) -> int:
    """The steps a folder's checkpoint has seen, 0 without one."""
    file = folder / "checkpoint.safetensors"
    return read_checkpoint(file)[0]["step"] if file.exists() else 0


def test_killed_runs_end_with_the_same_bits_and_two_never_mix(root, tiny_dataset):
    """Two torchruns on one folder: one waits, takes over when the other is killed, is killed."""
    work = (__file__, root, tiny_dataset.folder)
    runs = {name: torchrun(root / f"{name}.log", *work, "0.3", name) for name in "ab"}
    until(lambda: any((root / f"{name}-1").exists() for name in runs), "a run trains")
    trainer, waiter = "ab" if (root / "a-1").exists() else "ba"
    waits = f"waiting for another training of {root / 'killed'} to end"
    until(lambda: waits in (root / f"{waiter}.log").read_text(), "the other waits")
    until(lambda: step_of(root / "killed") >= 5, "five steps are saved")
    assert not (root / f"{waiter}-0").exists(), "the other has not trained so far"

    os.kill(int((root / f"{trainer}-1").read_text()), signal.SIGKILL)
    assert runs[trainer].wait(LIMIT) == 1, "rank 1 was killed: torchrun ends the rest"
    before = step_of(root / "killed")
    until(lambda: step_of(root / "killed") >= before + 3, "the other goes on")

    for pid in [int((root / f"{waiter}-{rank}").read_text()) for rank in (0, 1)]:
        os.kill(pid, signal.SIGKILL)
    runs[waiter].kill()
    runs[waiter].wait(LIMIT)
    assert 5 < step_of(root / "killed") < 60
    assert torchrun(root / "last.log", *work, "0").wait(LIMIT) == 0, (root / "last.log").read_text()

    (head, tensors), (whole_head, whole) = contents(root / "killed"), contents(root / "whole")
    assert head == whole_head and head["step"] == 60 and tensors.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in tensors.items())
    assert not list((root / "killed").glob(".*.part"))


def test_the_command_line_trains_the_arm_that_the_notebook_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    changes = {"train": 1500, "valid": 80, "test": 400, "budget": 2e8, "batch_tokens": 512}
    size = get_size("tiny", changes)
    dataset = lab.size_dataset(size, lab.size_graph(size, make=True), make=True)
    entry = ("-m", "commands.train", "--size", "tiny", "--arm", "gru-16", "lstm-32")
    log = tmp_path / "log"
    code = torchrun(log, *entry, "--seed", "3", "--overrides", json.dumps(changes)).wait(LIMIT)
    assert code == 0 and "lstm-32: 3 steps" in log.read_text(), log.read_text()
    folders = set((size.folder / "models").iterdir())
    seconds = {json.loads((f / "history.json").read_text())["seconds"] for f in folders}
    for arm in ("gru-16", "lstm-32"):
        loaded = lab.train_arm(size, dataset, arm, 3)
        assert loaded.seconds in seconds, "it was not trained again"
        assert loaded.history["valid_loss"].notna().all()
    assert set((size.folder / "models").iterdir()) == folders and len(folders) == 2


# Shares of a batch, without processes


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_shares_add_up_to_the_batch(tiny_dataset, ranks, rows):
    model = build("rnn", tiny_dataset.graph, **MODEL)
    batch = batch_of(tiny_dataset.rows("test").take(np.arange(rows) * 31))
    whole = model.loss(batch)
    expected = torch.autograd.grad(whole, list(model.parameters()))
    shares = [Team(rank, ranks).share(batch) for rank in range(ranks)]
    assert all(len(share) >= 1 for share, _ in shares)
    assert sum(len(share) for share, weight in shares if weight) == rows
    mean = sum(model.loss(share) * weight for share, weight in shares) / ranks
    found = torch.autograd.grad(mean, list(model.parameters()))
    assert mean.item() == pytest.approx(whole.item(), rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


def test_one_process_is_a_team_that_changes_nothing(tiny_dataset):
    batch, team = batch_of(tiny_dataset.rows("test").take(np.arange(3))), Team()
    assert team.share(batch)[0] is batch and team.from_first(lambda: {1: 2}) == {1: 2}
    before = torch.get_rng_state()
    team.seed(1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert asdict(join()) == {"rank": 0, "size": 1}


def test_each_step_and_rank_draws_its_own_numbers():
    state, drawn = torch.get_rng_state(), {}
    for seed, step, rank in np.ndindex(2, 3, 4):
        Team(rank, 4).seed(seed, step)
        drawn[seed, step, rank] = torch.rand(2).tolist()
        Team(rank, 4).seed(seed, step)
        assert torch.rand(2).tolist() == drawn[seed, step, rank]
    assert len({tuple(numbers) for numbers in drawn.values()}) == 24
    torch.set_rng_state(state)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
