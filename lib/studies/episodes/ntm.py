"""The Neural Turing Machine (Graves et al. 2014), and what the DNC has of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.memory.streams import Memory, at_least

CLIP = 20.0  # beyond it sigmoid and softplus are flat, and exp is safe
TINY = 1e-6  # added to squared lengths: a slot of zeros has a direction of none
BLANK = 1e-6  # every number in a new memory of an NTM (Collier & Beel 2018)


def content_weights(
    memory: Tensor, keys: Tensor, strengths: Tensor, masks: Tensor | None = None
) -> Tensor:
    """Return weights [B, R, slots]: a softmax of strength times cosine.

    memory: [B, slots, word]; keys: [B, R, word]; strengths: [B, R]. With masks [B, R, word] in
    [0, 1] the cosine is that of the masked key with the masked slot (Csordas & Schmidhuber 2019).
    """
    masked = keys if masks is None else keys * masks
    aims = masked * (strengths * (masked.square().sum(-1) + TINY).rsqrt()).unsqueeze(-1)
    squares = memory.square()
    if masks is None:
        squared = squares.sum(-1).unsqueeze(1)
    else:
        aims, squared = aims * masks, torch.bmm(masks.square(), squares.mT)
    return (torch.bmm(aims, memory.mT) * (squared + TINY).rsqrt()).softmax(-1)


def shift(weights: Tensor, shifts: Tensor) -> Tensor:
    """Return weights [..., slots] moved round by shifts [..., 3]: back, not at all, on by one."""
    around = torch.stack((weights.roll(-1, -1), weights, weights.roll(1, -1)), -2)
    return (around * shifts.unsqueeze(-1)).sum(-2)


def sharpen(weights: Tensor, powers: Tensor, floor: float = 1e-12) -> Tensor:
    """Return weights [..., slots] to powers [...] >= 1, with sum 1; zeros become equal weights.

    As a softmax of logarithms neither the power nor the sum can come to 0 / 0.
    """
    return ((weights + floor).log() * powers.unsqueeze(-1)).softmax(-1)


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Return memory [B, slots, word] after a head [B, 1, slots] erased, then added [B, 1, word]."""
    return torch.addcmul(memory, weights.mT, torch.addcmul(add, erase, memory, value=-1))


class ControlledState(NamedTuple):
    """The controller's hidden and cell [B, H], the last reads [B, R, word] and what is held."""

    hidden: Tensor
    cell: Tensor
    reads: Tensor
    held: Any


class ControlledMemory(Memory):
    """An LSTM whose interface vector tells a memory of slots what to do, once a step.

    The controller's input is the stream's vector and what was read the step before; the output is
    linear in its hidden state and the reads. `heads` read `word` numbers each; `parts` are how
    long the parts of the interface vector are.
    """

    sized = "slots"

    def __init__(
        self, width: int, hidden: int, slots: int, word: int, heads: int, parts: tuple[int, ...]
    ) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden, slots=slots, word=word, heads=heads)
        self.width, self.hidden, self.parts = width, hidden, parts
        self.slots, self.word, self.heads = slots, word, heads
        self.inputs = nn.Linear(width, 4 * hidden)
        self.recurrent = nn.Linear(hidden + heads * word, 4 * hidden, bias=False)
        with torch.no_grad():
            self.inputs.bias[hidden : 2 * hidden] += 1.0  # keep the cell until taught otherwise
        self.interface = nn.Linear(hidden, sum(parts))
        self.output = nn.Linear(hidden + heads * word, width)

    @abstractmethod
    def empty(self, batch: int) -> Any:
        """Return what is held before a stream."""

    @abstractmethod
    def step(self, interface: Tensor, held: Any) -> tuple[Any, Tensor]:
        """Return what is held after an interface vector [B, ...], and the reads [B, R, word]."""

    @abstractmethod
    def step_flops(self) -> int:
        """Return the operations of `step` for one stream."""

    def start(self, batch: int) -> ControlledState:
        hidden = self.output.weight.new_zeros(batch, self.hidden)
        reads = hidden.new_zeros(batch, self.heads, self.word)
        return ControlledState(hidden, hidden, reads, self.empty(batch))

    def forward(
        self, x: Tensor, state: ControlledState | None = None
    ) -> tuple[Tensor, ControlledState]:
        hidden, cell, reads, held = self.start(len(x)) if state is None else state
        fed, outputs = torch.cat((hidden, self.read(reads).flatten(1)), 1), []
        for given in self.inputs(x).unbind(1):
            gates = torch.addmm(given, fed, self.recurrent.weight.t())
            opened, new = gates.split((3 * self.hidden, self.hidden), 1)
            enters, stays, leaves = opened.sigmoid().chunk(3, 1)
            cell = torch.addcmul(stays * cell, enters, new.tanh())
            hidden = leaves * cell.tanh()
            held, reads = self.step(self.interface(hidden).clamp(-CLIP, CLIP), held)
            fed = torch.cat((hidden, self.read(reads).flatten(1)), 1)
            outputs.append(fed)
        return self.output(torch.stack(outputs, 1)), ControlledState(hidden, cell, reads, held)

    def flops_per_step(self) -> int:
        """Return the operations of the matrices, ten per unit of the cell, and those of `step`."""
        linear = (self.inputs, self.recurrent, self.interface, self.output)
        weights = sum(2 * each.weight.numel() for each in linear)
        biases = 4 * self.hidden + sum(self.parts) + self.width
        return weights + biases + 10 * self.hidden + self.step_flops()


class Tape(NamedTuple):
    """The memory [B, slots, word] and the weights [B, 2, slots] of its reading, writing head."""

    memory: Tensor
    weights: Tensor


class NTM(ControlledMemory):
    """A reading and a writing head that move by content, or from where they stand by one.

    At first both stand on slot 0. In a step they move by what is in memory, one reads it, the other
    erases and adds.
    """

    def __init__(self, width: int, hidden: int = 64, slots: int = 32, word: int = 16) -> None:
        # keys; the vector to add; strengths and powers; gates and the vector to erase; shifts
        parts = (2 * word, word, 4, 2 + word, 6)
        super().__init__(width, hidden, slots, word, 1, parts)

    def empty(self, batch: int) -> Tape:
        blank = self.output.weight.new_full((batch, self.slots, self.word), BLANK)
        weights = blank.new_zeros(batch, 2, self.slots)
        weights[..., 0] = 1.0
        return Tape(blank, weights)

    def step(self, interface: Tensor, held: Tape) -> tuple[Tape, Tensor]:
        keys, add, positive, gates, shifts = interface.split(self.parts, 1)
        strengths, powers = F.softplus(positive).chunk(2, 1)
        gates, erase = gates.sigmoid().split((2, self.word), 1)
        content = content_weights(held.memory, keys.unflatten(1, (2, self.word)), strengths)
        weights = torch.lerp(held.weights, content, gates.unsqueeze(-1))
        weights = shift(weights, shifts.unflatten(1, (2, 3)).softmax(-1))
        weights = sharpen(weights, 1 + powers)
        reader, writer = weights.split(1, 1)
        memory = write(held.memory, writer, erase.unsqueeze(1), add.tanh().unsqueeze(1))
        return Tape(self.kept(memory), self.kept(weights)), torch.bmm(reader, held.memory)

    def step_flops(self) -> int:
        size = self.slots * self.word
        content = 4 * size + 2 * size + 2 * (5 * self.word + 6 * self.slots)
        places = 2 * self.slots * (3 + 5 + 8)
        return 4 * sum(self.parts) + content + places + (2 + 3 + 2) * size
