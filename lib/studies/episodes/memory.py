"""A sequence model with a memory: its interface, and the LSTM, whose state is all that it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

State = Any
Tap = Callable[[Tensor], Tensor]


class Memory(nn.Module, ABC):
    """A sequence model that carries a memory along a stream of vectors.

    How a stream is cut into pieces changes nothing: `assert_pieces_agree` tests it. A subclass sets
    `width` and implements the three methods below; it passes what its memory returns through
    `read`, and what it keeps in memory through `kept`, so that every memory can be blanked,
    swapped or rounded alike.

    Attributes:
        width: numbers in each input and each output vector.
        tap: changes what the memory returns before it is used, batch first (None: nothing).
        rounding: the type in which memory is kept from step to step (None: as computed).
    """

    width: int
    tap: Tap | None = None
    rounding: torch.dtype | None = None

    @abstractmethod
    def start(self, batch: int) -> State:
        """Return the state before a stream, for `batch` streams, on the parameters' device."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read x [B, T, width] from a state (None: a new stream); return [B, T, width], a state.

        The state given is left as it was.
        """

    @abstractmethod
    def flops_per_step(self) -> int:
        """Return the operations of one step of one stream (a multiply-add is two), memory full."""

    def read(self, values: Tensor) -> Tensor:
        """Return what the memory returned, [B, ...], as the network is to see it."""
        return values if self.tap is None else self.tap(values)

    def kept(self, values: Tensor) -> Tensor:
        """Return what is to be kept in memory, rounded where `rounding` says so."""
        return values if self.rounding is None else values.to(self.rounding).to(values.dtype)

    @property
    def parameters_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def at_least(least: int, **sizes: int) -> None:
    """Check that named sizes are whole and not below the least.

    Raises:
        ValueError: names the first that is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or size < least:
            raise ValueError(f"{name} is a whole number of at least {least}, not {size}")


def blanked(values: Tensor) -> Tensor:
    """Return zeros: a tap for a memory that returns nothing."""
    return torch.zeros_like(values)


def swapped(values: Tensor) -> Tensor:
    """Return each stream's reads from the stream before it: a tap for another's memory."""
    return values.roll(1, 0)


def numbers_held(state: State) -> int:
    """Return how many numbers a state holds, over all its streams."""
    return sum(leaf.numel() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def assert_pieces_agree(
    memory: Memory, x: Tensor, cuts: Sequence[int] = (1, 3, 8), tolerance: float = 1e-5
) -> None:
    """Check that a stream read whole, in pieces cut at `cuts` and step by step gives the same.

    Raises:
        AssertionError: names the first step that differs.
    """
    whole, _ = memory(x)
    borders = [0, *(c for c in sorted(cuts) if c < x.shape[1]), x.shape[1]]
    pieces = [x[:, a:b] for a, b in pairwise(borders)]
    for how, parts in {"in pieces": pieces, "step by step": list(x.split(1, 1))}.items():
        state, outputs = memory.start(len(x)), []
        for part in parts:
            output, state = memory(part, state)
            outputs.append(output)
        off = (torch.cat(outputs, 1) - whole).abs().amax((0, 2))
        wrong = (off > tolerance).nonzero()
        if len(wrong):
            step = int(wrong[0])
            raise AssertionError(f"read {how}, step {step} differs by {float(off[step]):.2g}")


class LSTM(Memory):
    """The baseline: an LSTM (Hochreiter and Schmidhuber 1997) and a linear output.

    It has no memory apart from its hidden state and cell, zeros [B, 1, hidden] each at first: `tap`
    changes nothing, `rounding` applies to both. The forget gate's bias starts at 1 (Jozefowicz et
    al. 2015).
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden)
        self.width, self.hidden = width, hidden
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.output = nn.Linear(hidden, width)
        with torch.no_grad():  # torch's order: input, forget, cell, output
            self.lstm.bias_ih_l0[hidden : 2 * hidden] = 1.0
            self.lstm.bias_hh_l0[hidden : 2 * hidden] = 0.0

    def start(self, batch: int) -> State:
        zeros = self.output.weight.new_zeros(batch, 1, self.hidden)
        return zeros, zeros.clone()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state = self.start(len(x)) if state is None else state
        # Rounding is from step to step, so that it does not depend on how a stream is cut.
        pieces, outputs = [x] if self.rounding is None else x.split(1, 1), []
        for piece in pieces:
            given = tuple(part.transpose(0, 1).contiguous() for part in state)
            hidden, state = self.lstm(piece, given)
            state = tuple(self.kept(part.transpose(0, 1)) for part in state)
            outputs.append(hidden)
        return self.output(torch.cat(outputs, 1)), state

    def flops_per_step(self) -> int:
        """Return the operations of the matrix products, and 12 a unit for gates and cell."""
        gates = 2 * 4 * self.hidden * (self.width + self.hidden)
        return gates + 12 * self.hidden + 2 * self.hidden * self.width
