"""The training loop: AdamW, a schedule, clipping; resumable, and branching, to the same bits.

One process or several, started by torchrun, run the same loop.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from citypaths.data.batches import Batch, Batches, own_input
from citypaths.data.dataset import Dataset
from citypaths.files import (
    DataFileError,
    digest,
    remove_parts,
    sealed,
    write_json,
)
from citypaths.models import PathModel, build
from citypaths.training.checkpoints import pack, read_checkpoint, unpack, write_checkpoint
from citypaths.training.distributed import Team, join

Schedule = Literal["cosine", "constant-decay"]
WARM_SHARE = 0.05  # of the steps, before the cosine
WARM_STEPS, DECAY_SHARE = 100, 0.15  # of "constant-decay": a warm-up alike for every length


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps, batch_tokens: length of the run, padded tokens a batch.
        learning_rate: the highest, after a warm-up.
        schedule: "cosine" falls to 0 after the warm-up. "constant-decay" stays, and falls in a
            line to 0 over the last 15 % of the steps; until there, runs of any length are the same
            (Hägele et al. 2024).
        evaluations: how often to evaluate, the last at the end: spaced geometrically, or, for
            "constant-decay" and more than one, at 25 steps and each time the steps have doubled.
        hindsight: share of paths cut at random to a sub-path, itself a shortest path.
        own_input: probability of feeding the model its own prediction (observational dropout).
        save_seconds: between checkpoints.
        compile, bf16: torch.compile and bfloat16 autocast; None means on CUDA only.
    """

    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 8e-3
    schedule: Schedule = "cosine"
    seed: int = 0
    evaluations: int = 8
    hindsight: float = 0.0
    own_input: float = 0.0
    save_seconds: float = 20.0
    compile: bool | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"training takes at least one step, not {self.steps}")
        if self.schedule not in ("cosine", "constant-decay"):
            raise ValueError(f"schedule is cosine or constant-decay, not {self.schedule!r}")

    @property
    def decisive(self) -> dict[str, Any]:
        """Return what decides the outcome: all but how often it is saved."""
        return {k: v for k, v in asdict(self).items() if k != "save_seconds"}

    @property
    def stable_steps(self) -> int:
        """Steps that a "constant-decay" run shares with longer ones; 0 for "cosine"."""
        decay = max(1, round(DECAY_SHARE * self.steps))
        return self.steps - decay if self.schedule == "constant-decay" else 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if self.schedule == "constant-decay":
            warm = min(1.0, (step + 1) / WARM_STEPS)
            left = (self.steps - step) / (self.steps - self.stable_steps + 1)
            return self.learning_rate * warm * min(1.0, left)
        warm = max(1, round(WARM_SHARE * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (step - warm) / (self.steps - warm + 1)))
        )

    def evaluation_steps(self) -> list[int]:
        """Return the numbers of finished steps after which to evaluate."""
        first, n = min(25, self.steps), max(1, self.evaluations)
        if self.schedule == "constant-decay":
            doubled = [25 * 2**i for i in range(self.steps.bit_length())] if n > 1 else []
            return sorted({self.steps, *(step for step in doubled if step < self.steps)})
        ratio = (self.steps / first) ** (1 / max(1, n - 1))
        return sorted({self.steps, *(round(first * ratio**i) for i in range(n - 1))})


LOG_EVERY = 20
CLIP = 1.0  # largest norm of the gradient
COUNTERS = ("step", "tokens", "seconds", "finished", "history")
Evaluate = Callable[[PathModel], dict[str, float]]


class Diverged(RuntimeError):
    """The loss or a gradient stopped being a finite number."""


@dataclass
class Trained:
    """A trained model with its history (one row an evaluation), its cost, and where it lies."""

    model: PathModel
    history: pd.DataFrame
    steps: int
    training_flops: int
    seconds: float
    folder: Path | None = None


def train(
    name: str,
    dataset: Dataset,
    folder: Path,
    settings: TrainSettings,
    model_settings: dict[str, Any] | None = None,
    evaluate: Evaluate | None = None,
    device: torch.device | str = "cpu",
) -> Trained:
    """Build and train a registered model on a dataset, or go on from the folder's checkpoint.

    A finished folder is loaded, not trained again. A run of schedule "constant-decay" leaves its
    state before the decay beside its folder, where a longer run of the same settings begins: so
    runs by rising budgets train the stretch they share once. `evaluate` returns numbers for the
    history and must not draw from torch's global random numbers.

    Started by torchrun, every process calls this with the same arguments and takes a share of each
    batch; all return the same. Rank 0 alone evaluates, and reads and writes the folder. Batches do
    not depend on the number of processes, and a checkpoint may be gone on from with another number
    of them. With the same number a stopped run ends with the same bits. With another, weights
    agree to rounding, unless torch draws at random (noise, `own_input`): one process goes on
    from the state saved, several seed each step from (seed, step, rank).

    Raises:
        Diverged: the loss is no longer finite; the last good checkpoint stays.
        DataFileError: the folder's checkpoint is damaged or of other settings.
    """
    team = join()
    device = team.place(device)
    torch.manual_seed(settings.seed)
    model = build(name, dataset.graph, **(model_settings or {})).to(device)
    run = _Run(model, dataset, folder, settings, evaluate, team, device)
    with team.hold(folder / ".lock"):
        run.resume()
        run.go()
    forwards = 1.0 if settings.own_input else 0.0
    spent = training_flops(model, run.tokens, forwards)
    return Trained(model, pd.DataFrame(run.history), run.step, spent, run.seconds, folder)


def training_flops(model: PathModel, tokens: int, more_forwards: float = 0.0) -> int:
    """Return operations to train on `tokens` steps, with any further forward passes."""
    per_step = model.training_flops_per_step + more_forwards * model.flops_per_step()
    return int(per_step * tokens)


class _Run:
    """One training in progress; everything that changes is in the checkpoint."""

    def __init__(self, model, dataset, folder, settings, evaluate, team: Team, device) -> None:
        self.model, self.folder, self.settings = model, folder, settings
        self.evaluate, self.team, self.device = evaluate, team, device
        self.batches = (
            dataset.batches(settings, device)
            if hasattr(dataset, "batches")
            else Batches(
                dataset, settings.batch_tokens, settings.seed, device, hindsight=settings.hindsight
            )
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step, self.tokens, self.seconds, self.finished = 0, 0, 0.0, False
        self.history: list[dict[str, float]] = []
        on_cuda = device.type == "cuda"
        self.bf16 = on_cuda if settings.bf16 is None else settings.bf16
        compiled = on_cuda if settings.compile is None else settings.compile
        self.loss = torch.compile(model.loss, dynamic=True) if compiled else model.loss
        self.trouble = torch.zeros((), device=device)

    @property
    def identity(self) -> dict:
        """What must agree between a checkpoint and a run that goes on from it."""
        data = self.batches.dataset.recipe.to_json()
        identity = {"model": self.model.settings, "train": self.settings.decisive, "dataset": data}
        return json.loads(json.dumps(identity))  # tuples become lists, as in the file

    def go(self) -> None:
        evaluations, first = set(self.settings.evaluation_steps()), self.team.first
        saved, stream = time.monotonic(), iter(self.batches)
        length, name = self.settings.steps, self.folder.name
        bar = tqdm(total=length, initial=self.step, desc=name, unit="step", disable=not first)
        while not self.finished:
            began = time.monotonic()
            loss = self._advance(next(stream))
            due = self.step in evaluations
            if due or self.step % LOG_EVERY == 0:
                checked = self._check(loss)
                bar.set_postfix(loss=f"{checked:.3f}", refresh=False)
            self.seconds += time.monotonic() - began
            bar.update()
            if due:  # every rank's history is extended by what rank 0 measures
                measure = partial(self._measure, checked)
                self.history.append(self.team.from_first(measure))
            if first and self.step == self.settings.stable_steps:
                self.save(self._stable_file(self.step), self.stable_identity)
            self.finished = self.step >= length
            log = self.step % LOG_EVERY == 0
            if first and (self.finished or (log and self._time_to_save(saved))):
                self.save(self._file, self.identity)
                saved = time.monotonic()
        bar.close()

    def _time_to_save(self, saved: float) -> bool:
        return time.monotonic() - saved >= self.settings.save_seconds

    def _advance(self, batch: Batch) -> Tensor:
        """Take a step on the whole team's batch; return this rank's part of the loss."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        tokens = batch.labels.numel()
        self.team.seed(self.settings.seed, self.step)
        batch, weight = self.team.share(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.settings.own_input:
                batch = own_input(self.model, batch, self.settings.own_input)
            loss = self.loss(batch) if weight is None else self.loss(batch) * weight
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.team.average(self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.trouble += (loss.detach() + norm) * 0  # NaN and infinity stay NaN; read now and then
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        return loss.detach()

    def _check(self, loss: Tensor) -> float:
        """Return the loss of the whole batch; every rank sees the trouble of any."""
        value, trouble = self.team.mean(torch.stack([loss, self.trouble])).tolist()
        if not math.isfinite(trouble):
            raise Diverged(self.team.from_first(lambda: self._complaint(value)))
        return value

    def _complaint(self, loss: float) -> str:
        kept = "the last good checkpoint is kept" if self._file.exists() else "none was saved"
        return (
            f"{self.folder.name}: the loss ({loss:.4g}) or a gradient is not finite at step "
            f"{self.step}; {kept}. Lower learning_rate ({self.settings.learning_rate:g})."
        )

    def _measure(self, loss: float) -> dict[str, float]:
        entry = {"step": self.step, "tokens": self.tokens, "batch_loss": loss}
        if self.evaluate is not None:
            self.model.eval()
            with torch.inference_mode():
                entry |= self.evaluate(self.model)
        return entry

    @property
    def _file(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def stable_identity(self) -> dict:
        """What must agree between runs of any length that share a stretch of constant rate."""
        identity = self.identity
        identity["train"]["steps"] = 0
        return identity

    def _stable_file(self, step: int) -> Path:
        """The checkpoint that runs of other lengths may go on from, in a folder they share."""
        return self.folder.parent / f"stable-{digest(self.stable_identity)}" / f"{step}.safetensors"

    def save(self, path: Path, identity: dict) -> None:
        """Write weights, optimizer, random state and counters as one file, whole or not at all."""
        counters = {k: getattr(self, k) for k in COUNTERS}
        head = {"identity": identity, "position": self.batches.position, **counters}
        if path == self._file:
            # The history goes first: beside a finished checkpoint, which is final, it is whole.
            write_json(self.folder / "history.json", sealed(head))
        write_checkpoint(path, head, pack(self.model, self.optimizer))

    def resume(self) -> None:
        """Go on from the folder's checkpoint, where there is one; rank 0 reads it for all."""
        if self.team.from_first(lambda: self.identity) != self.identity:
            raise ValueError(f"rank {self.team.rank} has other settings or data than rank 0")
        tensors: dict[str, Tensor] = {}
        head = self.team.from_first(lambda: self._read(tensors))
        if head is None:
            return
        unpack(self.team.tensors_from_first(tensors), self.model, self.optimizer)
        for key in COUNTERS:
            setattr(self, key, head[key])
        self.batches.position = tuple(head["position"])

    def _read(self, into: dict[str, Tensor]) -> dict | None:
        """A checkpoint's head, or None without one; its tensors are put `into`."""
        remove_parts(self.folder)
        own = self._file.exists()
        path, identity = self._file, self.identity
        if not own:
            longest = self._longest_stable()
            if longest is None:
                return None
            path, identity = longest, self.stable_identity
        head, tensors = read_checkpoint(path)
        if head["identity"] != identity:
            raise DataFileError(
                f"{path} was trained with other settings or data: "
                f"delete {path.parent} to train anew"
            )
        if own and not (self.folder / "history.json").exists():
            write_json(self.folder / "history.json", sealed(head))
        into.update(tensors)
        return head

    def _longest_stable(self) -> Path | None:
        """The furthest checkpoint of runs of other lengths that this one has in common."""
        most = self.settings.stable_steps
        found = self._stable_file(0).parent.glob("*.safetensors") if most else ()
        steps = [int(path.stem) for path in found if path.stem.isdigit()]
        common = [step for step in steps if step <= most]
        return self._stable_file(max(common)) if common else None
