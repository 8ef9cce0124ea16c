"""Several processes that train one model, as torchrun starts them; one process is a team of one."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.files import DataFileError, lock

PATIENCE = timedelta(hours=1)  # the others wait so long for rank 0's evaluation
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Team:
    """The processes that train together. Every rank must call the same methods in the same order.

    Attributes:
        rank: this process, 0 to `size` - 1; rank 0 evaluates and writes. size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is rank 0."""
        return self.rank == 0

    def place(self, device: torch.device | str) -> torch.device:
        """Return this rank's device: on several, plain "cuda" is the GPU numbered LOCAL_RANK."""
        device = torch.device(device)
        if self.size > 1 and device.type == "cuda":
            if device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        return device

    def share(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """Return this rank's rows of a batch, and the weight of its loss.

        The mean over the ranks of weight x loss (a mean over labels) is the loss of the whole
        batch. A rank for which no row is left takes another's with weight 0. A team of one gets
        the batch itself and None.
        """
        if self.size == 1:
            return batch, None
        rows = torch.arange(len(batch), device=batch.labels.device)
        own, spare = rows[self.rank :: self.size], self.rank >= len(batch)
        share = batch.take(rows[:1] if spare else own)
        labels = (share.labels >= 0).sum() * (0 if spare else self.size)
        return share, labels / (batch.labels >= 0).sum()

    def average(self, model: nn.Module) -> None:
        """Replace a model's gradients by their means over the ranks."""
        if self.size == 1:
            return
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        means = self.mean(torch.cat([grad.flatten() for grad in grads]))
        for grad, part in zip(grads, means.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def seed(self, *numbers: int) -> None:
        """Seed torch's random numbers afresh from `numbers` and the rank; not in a team of one."""
        if self.size > 1:
            state = np.random.SeedSequence([*numbers, self.rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the ranks of a tensor."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Return on every rank the JSON-able value that `make()` returns on rank 0.

        Raises:
            DataFileError: on every rank, where `make` raises it on rank 0.
        """
        if self.size == 1:
            return make()
        note = json.dumps(_outcome(make)).encode() if self.first else b""
        length = torch.tensor(len(note))
        dist.broadcast(length, 0)
        text = bytearray(note) if self.first else bytearray(int(length))
        dist.broadcast(torch.frombuffer(text, dtype=torch.uint8), 0)
        outcome = json.loads(bytes(text))
        if "error" in outcome:
            raise DataFileError(outcome["error"])
        return outcome["value"]

    def tensors_from_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return on every rank the CPU tensors of rank 0; what the others pass is not looked at."""
        if self.size == 1:
            return tensors
        kinds = self.from_first(
            lambda: {k: [str(v.dtype).split(".")[1], list(v.shape)] for k, v in tensors.items()}
        )
        if not self.first:
            tensors = {k: torch.empty(s, dtype=getattr(torch, t)) for k, (t, s) in kinds.items()}
        for name in kinds:
            dist.broadcast(tensors[name], 0)
        return tensors

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        """Hold a file's lock in rank 0, all waiting until it is free; all leave together."""
        if self.size == 1:
            with lock(path):
                yield
            return
        with ExitStack() as held:
            tries = 0
            while not self.from_first(lambda: _try_lock(held, path)):
                if self.first and not tries:
                    _log.warning("waiting for another training of %s to end", path.parent)
                tries += 1
                time.sleep(1)
            yield
            self.from_first(lambda: None)


def join() -> Team:
    """Return the team this process belongs to, joining torchrun's when WORLD_SIZE is above 1.

    A process group that the caller has set up is used as it is; it needs a backend for tensors on
    the CPU, as "cpu:gloo,cuda:nccl" has.
    """
    if not dist.is_available():
        return Team()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            return Team()
        on_cuda = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    return Team(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Take down the process group, if there is one, after the last training."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _outcome(make: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": make()}
    except DataFileError as error:
        return {"error": str(error)}


def _try_lock(held: ExitStack, path: Path) -> bool:
    try:
        held.enter_context(lock(path, wait=False))
    except BlockingIOError:
        return False
    return True
