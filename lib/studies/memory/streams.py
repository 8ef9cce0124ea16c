"""A sequence model with a memory: its interface, and the LSTM, whose state is all that it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

State = Any
Tap = Callable[[Tensor], Tensor]


class Memory(nn.Module, ABC):
    """A sequence model that carries a memory along a stream of vectors [B, T, width].

    How a stream is cut into pieces changes nothing: `assert_pieces_agree` tests it. A subclass
    implements the three methods below; it passes what its memory returns through `read`, and what
    it keeps through `kept`, so that every memory can be blanked, swapped or rounded alike.

    Attributes:
        tap: changes what the memory returns before it is used, batch first.
        rounding: the type in which memory is kept from step to step.
        sized: its attribute that is a size of memory, free to change between streams.
    """

    width: int
    tap: Tap | None = None
    rounding: torch.dtype | None = None
    sized: ClassVar[str] = ""

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
    """Raise a ValueError that names the first size that is not whole or below the least."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < least:
            raise ValueError(f"{name} is a whole number of at least {least}, not {size}")


def numbers_held(state: State) -> int:
    """Return how many numbers a state holds, over all its streams."""
    return sum(leaf.numel() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


def assert_pieces_agree(
    memory: Memory, x: Tensor, cuts: Sequence[int] = (1, 3, 8), tolerance: float = 1e-5
) -> None:
    """Check that a stream read whole, in pieces cut at `cuts` and step by step gives the same.

    An AssertionError names the first step that differs.
    """
    whole, _ = memory(x)
    inside = [cut for cut in cuts if cut < x.shape[1]]
    for how, borders in {"in pieces": inside, "step by step": range(1, x.shape[1])}.items():
        state, outputs = memory.start(len(x)), []
        for piece in x.tensor_split(list(borders), 1):
            output, state = memory(piece, state)
            outputs.append(output)
        off = (torch.cat(outputs, 1) - whole).abs().amax((0, 2))
        if (off > tolerance).any():
            step = int((off > tolerance).nonzero()[0])
            raise AssertionError(f"read {how}, step {step} differs by {float(off[step]):.2g}")


class LSTM(Memory):
    """The baseline: an LSTM (Hochreiter and Schmidhuber 1997) and a linear output.

    Its memory is its hidden state and cell [B, 1, hidden]: `tap` changes nothing, `rounding` both.
    The forget gate's bias starts at 1 (Jozefowicz et al. 2015).
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
        return (self.output.weight.new_zeros(batch, 1, self.hidden),) * 2

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        state, outputs = self.start(len(x)) if state is None else state, []
        # Rounding is from step to step, so that it does not depend on how a stream is cut.
        for piece in [x] if self.rounding is None else x.split(1, 1):
            given = tuple(part.transpose(0, 1).contiguous() for part in state)
            hidden, state = self.lstm(piece, given)
            state = tuple(self.kept(part.transpose(0, 1)) for part in state)
            outputs.append(hidden)
        return self.output(torch.cat(outputs, 1)), state

    def flops_per_step(self) -> int:
        gates = 2 * 4 * self.hidden * (self.width + self.hidden) + 12 * self.hidden
        return gates + 2 * self.hidden * self.width
