"""The training loop: AdamW, warm-up and cosine decay, clipping; resumable to the same bits."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from citypaths.batches import Batch, Batches
from citypaths.compute import training_flops
from citypaths.dataset import Dataset
from citypaths.files import (
    DataFileError,
    atomic_write,
    lock,
    read_sealed,
    remove_parts,
    sealed,
    write_json,
)
from citypaths.models import PathModel, build

LOG_EVERY = 20
Evaluate = Callable[[PathModel], dict[str, float]]


class Diverged(RuntimeError):
    """The loss or a gradient stopped being a finite number."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps, batch_tokens: length of the run, padded tokens a batch.
        learning_rate: peak, after `warmup` (share of the steps); cosine to 0.
        weight_decay, clip: AdamW's decoupled decay, largest gradient norm.
        evaluations: how often to evaluate, spaced geometrically, the last at the end.
        patience: stop after so many evaluations without a better validation loss (0: never).
        hindsight: share of paths cut at random to a sub-path, itself a shortest path.
        own_input: probability of feeding the model its own prediction (observational dropout).
        compile, bf16: torch.compile and bfloat16 autocast; None means on CUDA only.
    """

    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 8e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    evaluations: int = 8
    patience: int = 0
    hindsight: float = 0.0
    own_input: float = 0.0
    save_seconds: float = 20.0
    compile: bool | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"training takes at least one step, not {self.steps}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, round(self.warmup * self.steps))
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
        ratio = (self.steps / first) ** (1 / max(1, n - 1))
        return sorted({self.steps, *(round(first * ratio**i) for i in range(n - 1))})


@dataclass
class Trained:
    """A trained model with its history (one row an evaluation) and what it cost."""

    model: PathModel
    history: pd.DataFrame
    steps: int
    training_flops: int
    seconds: float


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

    A finished folder is loaded, not trained again. `evaluate` returns numbers for the history and
    must not draw from torch's global random numbers.

    Raises:
        Diverged: the loss is no longer finite; the last good checkpoint stays.
        DataFileError: the folder's checkpoint is damaged or of other settings.
    """
    torch.manual_seed(settings.seed)
    model = build(name, dataset.graph, **(model_settings or {})).to(device)
    run = _Run(model, dataset, folder, settings, evaluate, torch.device(device))
    with lock(folder / ".lock"):
        run.resume()
        run.go()
    history = pd.DataFrame(run.history)
    return Trained(
        model, history, run.step, training_flops(model, run.tokens, run.extra), run.seconds
    )


class _Run:
    """One training in progress; everything that changes is in the checkpoint."""

    def __init__(self, model, dataset, folder, settings, evaluate, device) -> None:
        self.model, self.folder, self.settings = model, folder, settings
        self.evaluate, self.device = evaluate, device
        self.batches = Batches(
            dataset, settings.batch_tokens, settings.seed, device, hindsight=settings.hindsight
        )
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.step, self.tokens, self.seconds, self.finished = 0, 0, 0.0, False
        self.history: list[dict[str, float]] = []
        self.extra = 1.0 if settings.own_input else 0.0
        on_cuda = device.type == "cuda"
        self.bf16 = on_cuda if settings.bf16 is None else settings.bf16
        compiled = on_cuda if settings.compile is None else settings.compile
        self.loss = torch.compile(model.loss, dynamic=True) if compiled else model.loss
        self.trouble = torch.zeros((), device=device)

    @property
    def identity(self) -> dict:
        """What must agree between a checkpoint and a run that goes on from it."""
        recipe = self.batches.dataset.recipe.to_json()
        trained = {k: v for k, v in asdict(self.settings).items() if k != "save_seconds"}
        return {"model": self.model.settings, "train": trained, "dataset": recipe}

    def go(self) -> None:
        evaluations = set(self.settings.evaluation_steps())
        saved, stream = time.monotonic(), iter(self.batches)
        bar = tqdm(total=self.settings.steps, initial=self.step, desc=self.folder.name, unit="step")
        while not self.finished:
            began = time.monotonic()
            loss = self._advance(next(stream))
            due = self.step in evaluations
            if due or self.step % LOG_EVERY == 0:
                self._check(loss)
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            self.seconds += time.monotonic() - began
            bar.update()
            if due:
                self._evaluate(loss)
            self.finished = self.finished or self.step >= self.settings.steps
            if self.finished or (self.step % LOG_EVERY == 0 and self._time_to_save(saved)):
                self._check(loss)
                self.save()
                saved = time.monotonic()
        bar.close()

    def _time_to_save(self, saved: float) -> bool:
        return time.monotonic() - saved >= self.settings.save_seconds

    def _advance(self, batch: Batch) -> Tensor:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            if self.settings.own_input:
                batch = own_input(self.model, batch, self.settings.own_input)
            loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.trouble += (loss.detach() + norm) * 0  # NaN and infinity stay NaN; read now and then
        self.step, self.tokens = self.step + 1, self.tokens + batch.labels.numel()
        return loss.detach()

    def _check(self, loss: Tensor) -> None:
        if not bool(torch.isfinite(self.trouble)):
            kept = "the last good checkpoint is kept" if self._file.exists() else "none was saved"
            rate, clip = self.settings.learning_rate, self.settings.clip
            raise Diverged(
                f"{self.folder.name}: the loss ({loss.item():.4g}) or a gradient is not finite "
                f"at step {self.step}; {kept}. Lower learning_rate ({rate:g}) or clip ({clip:g})."
            )

    def _evaluate(self, loss: Tensor) -> None:
        entry = {"step": self.step, "tokens": self.tokens, "batch_loss": loss.item()}
        if self.evaluate is not None:
            self.model.eval()
            with torch.inference_mode():
                entry |= self.evaluate(self.model)
        self.history.append(entry)
        losses = [row.get("valid_loss", row["batch_loss"]) for row in self.history]
        since_best = len(losses) - 1 - losses.index(min(losses))
        if self.settings.patience and since_best >= self.settings.patience:
            self.finished = True

    @property
    def _file(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def save(self) -> None:
        """Write weights, optimizer, random state and counters as one file, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in _weights(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        # The history goes first: beside a finished checkpoint, which is final, it is whole.
        head = self._save_history()
        with atomic_write(self._file) as part:
            copies = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            head["sha256"] = _digest(head, copies)
            try:
                save_file(copies, part, metadata={"run": json.dumps(head)})
            except SafetensorError as error:  # such as a full disk
                raise OSError(str(error)) from error

    def _save_history(self) -> dict:
        counters = {
            k: getattr(self, k) for k in ("step", "tokens", "seconds", "finished", "history")
        }
        head = {"identity": self.identity, "position": self.batches.position, **counters}
        write_json(self.folder / "history.json", sealed(head))
        return head

    def resume(self) -> None:
        """Go on from the folder's checkpoint, where there is one."""
        remove_parts(self.folder)
        if not self._file.exists():
            return
        head, tensors = read_checkpoint(self._file)
        if head["identity"] != json.loads(json.dumps(self.identity)):
            raise DataFileError(
                f"{self._file} was trained with other settings or data: "
                f"delete {self.folder} to train anew"
            )
        load_weights(self.model, tensors)
        for name, parameter in self.model.named_parameters():
            start = f"optimizer.{name}."
            state = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            moved = {k: v if k == "step" else v.to(self.device) for k, v in state.items()}
            self.optimizer.state[parameter] = moved
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        for key in ("step", "tokens", "seconds", "finished", "history"):
            setattr(self, key, head[key])
        self.batches.position = tuple(head["position"])
        if not (self.folder / "history.json").exists():
            self._save_history()


def _weights(model: PathModel) -> dict[str, Tensor]:
    """Parameters without repeats (tied ones are one) and persistent buffers."""
    persistent = model.state_dict().keys()
    buffers = {k: v for k, v in model.named_buffers() if k in persistent}
    return dict(model.named_parameters()) | buffers


def _digest(head: dict, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in a checkpoint: safetensors itself would not notice a flipped bit."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Return a checkpoint's head and its tensors on the CPU.

    Raises:
        DataFileError: the file is missing, damaged, or no checkpoint of this package.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            checksum = head.pop("sha256", None)
            if checksum != _digest(head, tensors):
                raise ValueError("it fails its checksum")
            return head, tensors
    except FileNotFoundError:
        raise DataFileError(f"{path} is missing: train the model first") from None
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise DataFileError(
            f"{path} is no whole checkpoint ({error}): delete it to train anew"
        ) from error


@torch.no_grad()
def load_weights(model: PathModel, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's `model.*` tensors into a model of the same shape."""
    for name, value in _weights(model).items():
        stored = tensors.get(f"model.{name}")
        if stored is None or stored.shape != value.shape:
            message = f"the checkpoint does not fit the model at {name}: delete it to train anew"
            raise DataFileError(message)
        value.copy_(stored)


def load_trained(folder: Path, graph, device: torch.device | str = "cpu") -> PathModel:
    """Rebuild the model a training folder holds, with its trained weights, in evaluation mode."""
    head, tensors = read_checkpoint(folder / "checkpoint.safetensors")
    if head["identity"]["dataset"]["graph"] != graph.fingerprint:
        message = f"{folder} was trained on another graph than {graph!r}: load that graph, or "
        raise DataFileError(f"{message}delete the folder to train anew")
    model = build(head["identity"]["model"].pop("model"), graph, **head["identity"]["model"])
    load_weights(model, tensors)
    return model.to(device).eval()


def load_history(folder: Path) -> pd.DataFrame:
    """Return the evaluations of a training folder, one row each."""
    return pd.DataFrame(read_sealed(folder / "history.json", "training")["history"])


@torch.no_grad()
def own_input(model: PathModel, batch: Batch, probability: float) -> Batch:
    """Replace inputs after the source by the model's own prediction, with `probability` each."""
    predicted = model(batch).argmax(-1)[:, :-1]
    swap = torch.rand(predicted.shape, device=predicted.device) < probability
    cities = batch.cities.clone()
    inside = batch.labels[:, 1:] >= 0
    cities[:, 1:] = torch.where(swap & inside, predicted, cities[:, 1:])
    return Batch(batch.source, batch.target, cities, batch.labels)
