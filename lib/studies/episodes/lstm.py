"""The baseline: an LSTM, whose memory is its recurrent state alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from studies.episodes.core import Memory

State = tuple[Tensor, Tensor]


class LSTM(Memory):
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997) and a linear output.

    It has no memory apart from the state that its layers carry, so `tap` changes nothing;
    `rounding` applies to that state, hidden and cell, from step to step. The forget gates' bias
    starts at 1 (Jozefowicz et al. 2015).

    Args:
        width: numbers of each input and output. hidden: units of a layer. layers: how many.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, width: int, hidden: int = 64, layers: int = 1) -> None:
        super().__init__()
        if min(width, hidden, layers) < 1:
            raise ValueError("an LSTM's width, hidden and layers are at least 1")
        self.width, self.hidden, self.layers = width, hidden, layers
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, width)
        for layer in range(layers):
            forget = slice(hidden, 2 * hidden)  # torch's order: input, forget, cell, output
            for name, value in (("bias_ih", 1.0), ("bias_hh", 0.0)):
                getattr(self.lstm, f"{name}_l{layer}").data[forget] = value

    def start(self, batch: int) -> State:
        """Return hidden and cell, zeros [B, layers, hidden] each."""
        zeros = self.output.weight.new_zeros(batch, self.layers, self.hidden)
        return zeros, zeros.clone()

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See `Memory.forward`."""
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
        first = 2 * 4 * self.hidden * (self.width + self.hidden)
        later = (self.layers - 1) * 2 * 4 * self.hidden * 2 * self.hidden
        return first + later + 12 * self.layers * self.hidden + 2 * self.hidden * self.width
