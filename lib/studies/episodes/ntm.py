"""The Neural Turing Machine (Graves, Wayne & Danihelka 2014)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.episodes.addressing import aimed, by_content, sharpened, shifted, written
from studies.episodes.controlled import ControlledMemory

BLANK = 1e-6  # every number in a new memory (Collier & Beel 2018)


class Tape(NamedTuple):
    """The memory [B, slots, word] and where its heads stand [B, 2 heads, slots], readers first."""

    memory: Tensor
    weights: Tensor


class NTM(ControlledMemory):
    """Heads that move over a tape by content, or from where they stand by one (Graves 2014).

    There are as many writing heads as reading ones, and at first all stand on slot 0. In a step
    the heads move by what was on the tape, the readers read it, the writers erase and add.

    Args:
        width: numbers in each input and output. hidden: units of the LSTM. slots, word: the tape.
        heads: reading heads, and writing heads.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self, width: int, hidden: int = 64, slots: int = 32, word: int = 16, heads: int = 1
    ) -> None:
        both = 2 * heads
        # keys; vectors to add; strengths and sharpness; gates; vectors to erase; shifts
        self.parts = (both * word, heads * word, 2 * both, both + heads * word, both * 3)
        super().__init__(width, hidden, slots, word, heads, sum(self.parts))

    def empty(self, batch: int) -> Tape:
        """Return a blank tape with all heads on slot 0."""
        blank = self.output.weight.new_full((batch, self.slots, self.word), BLANK)
        weights = blank.new_zeros(batch, 2 * self.heads, self.slots)
        weights[..., 0] = 1.0
        return Tape(blank, weights)

    def moved(
        self, tape: Tape, keys: Tensor, positive: Tensor, gates: Tensor, shifts: Tensor
    ) -> Tensor:
        """Return where the heads go, [B, 2 heads, slots]."""
        strengths, sharpness = positive.chunk(2, 1)
        content = by_content(tape.memory, aimed(keys, strengths))
        weights = torch.lerp(tape.weights, content, gates.unsqueeze(-1))
        return sharpened(shifted(weights, shifts), 1 + sharpness)

    def step(self, told: Tensor, held: Tape) -> tuple[Tape, Tensor]:
        """Move the heads, read and write; told: [B, numbers of the interface]."""
        both = 2 * self.heads
        keys, add, positive, gates, shifts = told.split(self.parts, 1)
        gates, erase = gates.sigmoid().split((both, self.heads * self.word), 1)
        shifts = shifts.unflatten(1, (both, 3)).softmax(-1)
        keys = keys.unflatten(1, (both, self.word))
        weights = self.moved(held, keys, F.softplus(positive), gates, shifts)
        readers, writers = weights.split(self.heads, 1)
        erase = erase.unflatten(1, (self.heads, self.word))
        add = add.tanh().unflatten(1, (self.heads, self.word))
        memory = written(held.memory, writers, erase, add)
        reads = torch.bmm(readers, held.memory)
        return Tape(self.kept(memory), self.kept(weights)), reads

    def step_flops(self) -> int:
        """Return the operations of `step` for one stream."""
        both, size = 2 * self.heads, self.slots * self.word
        told = 4 * sum(self.parts)
        content = 2 * both * size + 2 * size + both * (5 * self.word + 6 * self.slots)
        places = both * self.slots * (3 + 5 + 8)
        return told + content + places + self.heads * (2 + 3 + 2) * size
