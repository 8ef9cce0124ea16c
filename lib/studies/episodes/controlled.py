"""A memory of slots beside a network that writes and reads it: what NTM and DNC share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from studies.episodes.core import Memory

CLIP = 20.0  # beyond it sigmoid and softplus are flat, and exp is safe


class Controller(nn.Module):
    """An LSTM whose input is the stream's vector and what was read the step before."""

    def __init__(self, width: int, reads: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.inputs = nn.Linear(width, 4 * hidden)
        self.recurrent = nn.Linear(hidden + reads, 4 * hidden, bias=False)
        with torch.no_grad():
            self.inputs.bias[hidden : 2 * hidden] += 1.0  # keep the cell until taught otherwise

    def forward(self, gates: Tensor, fed: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden and cell [B, H]; gates [B, 4 H] from the input, fed [B, H + R]."""
        gates = torch.addmm(gates, fed, self.recurrent.weight.t())
        opened, new = gates.split((3 * self.hidden, self.hidden), 1)
        enters, stays, leaves = opened.sigmoid().chunk(3, 1)
        cell = torch.addcmul(stays * cell, enters, new.tanh())
        return leaves * cell.tanh(), cell

    def flops(self) -> int:
        """Return the operations of a step: two matrices, and ten per unit of the cell."""
        weights = self.inputs.weight.numel() + self.recurrent.weight.numel()
        return 2 * weights + 4 * self.hidden + 10 * self.hidden


class ControlledState(NamedTuple):
    """The controller's hidden and cell [B, H], the last reads [B, R, word] and what is held."""

    hidden: Tensor
    cell: Tensor
    reads: Tensor
    held: Any


class ControlledMemory(Memory):
    """A controller that tells a memory of slots what to do, once a step.

    A subclass says how many numbers its interface has, and implements `empty`, `step` and
    `step_flops`. The output is linear in the controller's hidden state and the reads.

    Attributes:
        slots: vectors in memory; may be changed between streams, no parameter depends on it.
        word: numbers in each. heads: vectors read a step.
    """

    def __init__(
        self, width: int, hidden: int, slots: int, word: int, heads: int, interface: int
    ) -> None:
        super().__init__()
        dials = {"width": width, "hidden": hidden, "slots": slots, "word": word, "heads": heads}
        if wrong := [name for name, value in dials.items() if value < 1]:
            raise ValueError(f"{', '.join(wrong)} must be at least 1")
        self.width, self.slots, self.word, self.heads = width, slots, word, heads
        self.controller = Controller(width, heads * word, hidden)
        self.interface = nn.Linear(hidden, interface)
        self.output = nn.Linear(hidden + heads * word, width)

    @abstractmethod
    def empty(self, batch: int) -> Any:
        """Return what is held before a stream."""

    @abstractmethod
    def step(self, told: Tensor, held: Any) -> tuple[Any, Tensor]:
        """Return what is held after a step, and the vectors read [B, R, word]."""

    @abstractmethod
    def step_flops(self) -> int:
        """Return the operations of `step` for one stream."""

    def start(self, batch: int) -> ControlledState:
        """Return the state before `batch` streams."""
        zeros = self.output.weight.new_zeros
        hidden = self.controller.hidden
        reads = zeros(batch, self.heads, self.word)
        return ControlledState(zeros(batch, hidden), zeros(batch, hidden), reads, self.empty(batch))

    def forward(
        self, x: Tensor, state: ControlledState | None = None
    ) -> tuple[Tensor, ControlledState]:
        """Read x [B, T, width] from a state; return [B, T, width] and the state after."""
        hidden, cell, reads, held = self.start(len(x)) if state is None else state
        fed, outputs = torch.cat((hidden, self.read(reads).flatten(1)), 1), []
        for gates in self.controller.inputs(x).unbind(1):
            hidden, cell = self.controller(gates, fed, cell)
            told = self.interface(hidden).clamp(-CLIP, CLIP)
            held, reads = self.step(told, held)
            fed = torch.cat((hidden, self.read(reads).flatten(1)), 1)
            outputs.append(fed)
        return self.output(torch.stack(outputs, 1)), ControlledState(hidden, cell, reads, held)

    def flops_per_step(self) -> int:
        """Return the operations of one step of one stream."""
        linear = sum(2 * m.weight.numel() + len(m.bias) for m in (self.interface, self.output))
        return self.controller.flops() + linear + self.step_flops()
