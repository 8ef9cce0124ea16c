"""The Neural Turing Machine and its copy task (Graves et al. 2014); what the DNC has of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.memory import LSTM, Memory, at_least

CLIP = 20.0  # beyond it sigmoid and softplus are flat, and exp is safe
TINY = 1e-6  # added to squared lengths: a slot of zeros has a direction of none
BLANK = 1e-6  # every number in a new memory of an NTM (Collier & Beel 2018)


def content_weights(
    memory: Tensor, keys: Tensor, strengths: Tensor, masks: Tensor | None = None
) -> Tensor:
    """Return weights [B, R, slots]: a softmax of strength times cosine (Graves et al. 2014).

    memory: [B, slots, word]; keys: [B, R, word]; strengths: [B, R]. With masks [B, R, word] in
    [0, 1] the cosine is that of the masked key with the masked slot (Csordas & Schmidhuber 2019).
    """
    masked = keys if masks is None else keys * masks
    lengths = (masked.square().sum(-1) + TINY).rsqrt()
    aims = masked * (strengths * lengths).unsqueeze(-1)
    aims = aims if masks is None else aims * masks
    squares = memory.square()
    if masks is None:
        squared = squares.sum(-1).unsqueeze(1)
    else:
        squared = torch.bmm(masks.square(), squares.mT)
    return (torch.bmm(aims, memory.mT) * (squared + TINY).rsqrt()).softmax(-1)


def shift(weights: Tensor, shifts: Tensor) -> Tensor:
    """Return weights [..., slots] moved round by shifts [..., 3]: back, not at all, on by one."""
    around = torch.stack((weights.roll(-1, -1), weights, weights.roll(1, -1)), -2)
    return (around * shifts.unsqueeze(-1)).sum(-2)


def sharpen(weights: Tensor, powers: Tensor, floor: float = 1e-12) -> Tensor:
    """Return weights [..., slots] to powers [...] >= 1, with sum 1.

    As a softmax of logarithms neither the power nor the sum can come to 0 / 0; `floor` is added
    first, so that zeros everywhere become equal weights.
    """
    return ((weights + floor).log() * powers.unsqueeze(-1)).softmax(-1)


def write(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Return memory [B, slots, word] after one head erased, then added (Graves et al. 2014).

    weights: [B, 1, slots]. erase, add: [B, 1, word].
    """
    return torch.addcmul(memory, weights.mT, torch.addcmul(add, erase, memory, value=-1))


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


class ControlledState(NamedTuple):
    """The controller's hidden and cell [B, H], the last reads [B, R, word] and what is held."""

    hidden: Tensor
    cell: Tensor
    reads: Tensor
    held: Any


class ControlledMemory(Memory):
    """A controller whose interface vector tells a memory of slots what to do, once a step.

    A subclass says how long the parts of its interface vector are, and implements `empty`, `step`
    and `step_flops`. The output is linear in the controller's hidden state and the reads. `slots`
    may be changed between streams: no parameter depends on it. `heads` read `word` numbers each.
    """

    def __init__(
        self, width: int, hidden: int, slots: int, word: int, heads: int, parts: tuple[int, ...]
    ) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden, slots=slots, word=word, heads=heads)
        self.width, self.slots, self.word, self.heads, self.parts = width, slots, word, heads, parts
        self.controller = Controller(width, heads * word, hidden)
        self.interface = nn.Linear(hidden, sum(parts))
        self.output = nn.Linear(hidden + heads * word, width)

    @abstractmethod
    def empty(self, batch: int) -> Any:
        """Return what is held before a stream."""

    @abstractmethod
    def step(self, interface: Tensor, held: Any) -> tuple[Any, Tensor]:
        """Return what is held after a step, and the vectors read [B, R, word].

        interface: [B, sum of the parts].
        """

    @abstractmethod
    def step_flops(self) -> int:
        """Return the operations of `step` for one stream."""

    def start(self, batch: int) -> ControlledState:
        zeros = self.output.weight.new_zeros
        hidden = self.controller.hidden
        reads = zeros(batch, self.heads, self.word)
        return ControlledState(zeros(batch, hidden), zeros(batch, hidden), reads, self.empty(batch))

    def forward(
        self, x: Tensor, state: ControlledState | None = None
    ) -> tuple[Tensor, ControlledState]:
        hidden, cell, reads, held = self.start(len(x)) if state is None else state
        fed, outputs = torch.cat((hidden, self.read(reads).flatten(1)), 1), []
        for gates in self.controller.inputs(x).unbind(1):
            hidden, cell = self.controller(gates, fed, cell)
            held, reads = self.step(self.interface(hidden).clamp(-CLIP, CLIP), held)
            fed = torch.cat((hidden, self.read(reads).flatten(1)), 1)
            outputs.append(fed)
        return self.output(torch.stack(outputs, 1)), ControlledState(hidden, cell, reads, held)

    def flops_per_step(self) -> int:
        """Return the operations of the matrices, ten per unit of the cell, and those of `step`."""
        controller = self.controller
        linear = (controller.inputs, controller.recurrent, self.interface, self.output)
        weights = sum(2 * m.weight.numel() for m in linear)
        biases = 4 * controller.hidden + len(self.interface.bias) + len(self.output.bias)
        return weights + biases + 10 * controller.hidden + self.step_flops()


class Tape(NamedTuple):
    """The memory [B, slots, word] and the weights [B, 2, slots] of its reading, writing head."""

    memory: Tensor
    weights: Tensor


class NTM(ControlledMemory):
    """A reading and a writing head that move by content, or from where they stand by one.

    At first the memory is blank and both heads stand on slot 0. In a step the heads move by what
    is in memory, one reads it, the other erases and adds (Graves et al. 2014).
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
        shifts = shifts.unflatten(1, (2, 3)).softmax(-1)

        content = content_weights(held.memory, keys.unflatten(1, (2, self.word)), strengths)
        weights = torch.lerp(held.weights, content, gates.unsqueeze(-1))
        weights = sharpen(shift(weights, shifts), 1 + powers)
        reader, writer = weights.split(1, 1)
        memory = write(held.memory, writer, erase.unsqueeze(1), add.tanh().unsqueeze(1))
        return Tape(self.kept(memory), self.kept(weights)), torch.bmm(reader, held.memory)

    def step_flops(self) -> int:
        size = self.slots * self.word
        content = 4 * size + 2 * size + 2 * (5 * self.word + 6 * self.slots)
        places = 2 * self.slots * (3 + 5 + 8)
        return 4 * sum(self.parts) + content + places + (2 + 3 + 2) * size


BITS, LONGEST, BATCH, RATE = 6, 8, 16, 1e-2
CHANCE = BITS * (LONGEST + 1) / 4  # wrong bits a sequence


def copy_batch(batch: int, length: int, bits: int, generator: torch.Generator) -> Tensor:
    """Return streams [B, 2 length + 2, bits + 2] of the copy task (Graves et al. 2014).

    A flag, vectors of bits, a flag, silence; the last two numbers of a vector are the flags.
    """
    stream = torch.zeros(batch, 2 * length + 2, bits + 2)
    shape = (batch, length, bits)
    stream[:, 1 : length + 1, :bits] = torch.randint(2, shape, generator=generator).float()
    stream[:, 0, bits] = stream[:, length + 1, bits + 1] = 1.0
    return stream


def train_copy(
    memory: Memory, steps: int, longest: int = LONGEST, every: int = 40, seed: int = 0
) -> pd.DataFrame:
    """Train a memory to say 1 to `longest` vectors of bits, its width less two flags, again.

    Every step is Adam's (Kingma & Ba 2015) on 16 new sequences. The parameters change in place.

    Returns: columns sequences (shown so far) and wrong_bits (a sequence, the mean over the last
    `every` batches).
    """
    draw, adam = torch.Generator().manual_seed(seed), torch.optim.Adam(memory.parameters(), RATE)
    wrong, rows = 0.0, []
    for step in range(1, steps + 1):
        length = int(torch.randint(1, longest + 1, (), generator=draw))
        stream = copy_batch(BATCH, length, memory.width - 2, draw)
        bits, said = stream[:, 1 : length + 1, :-2], memory(stream)[0][:, length + 2 :, :-2]
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(said, bits).backward()
        nn.utils.clip_grad_norm_(memory.parameters(), 10.0)
        adam.step()
        wrong += float(((said > 0) != (bits > 0.5)).sum()) / BATCH / every
        if step % every == 0:
            rows.append({"sequences": BATCH * step, "wrong_bits": wrong})
            wrong = 0.0
    return pd.DataFrame(rows)


def copy_curves(steps: int, seed: int = 0) -> pd.DataFrame:
    """Train an NTM, and an LSTM of twice its parameters, to copy up to 8 vectors of 6 bits.

    Returns: the columns of `train_copy`, with memory and parameters.
    """
    torch.manual_seed(seed)
    pair = {"lstm": LSTM(BITS + 2, 64), "ntm": NTM(BITS + 2, 32, slots=16, word=12)}
    curves = [
        train_copy(memory, steps, seed=seed).assign(memory=name, parameters=memory.parameters_count)
        for name, memory in pair.items()
    ]
    return pd.concat(curves, ignore_index=True)
