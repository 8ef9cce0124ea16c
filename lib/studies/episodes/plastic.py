"""Differentiable plasticity: a recurrent network whose connections change as it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from studies.episodes.memory import Memory, at_least

State = tuple[Tensor, Tensor]


class Plastic(Memory):
    """A recurrent network with weights w + alpha * trace, the trace made as it runs.

    h' = tanh(input + (w + alpha * trace) h), then trace' = (1 - rate) trace + rate h' h^T: the
    trace [hidden, hidden] of each stream is its memory and joins what a unit does to what another
    did a step before. w, alpha and the rate, within 0..1, are learned by gradient (Miconi et al.
    2018).
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden)
        self.width, self.hidden = width, hidden
        self.inputs = nn.Linear(width, hidden)
        # Small, so that what was seen before does not echo into the keys; alpha is positive, so
        # that a trace gives back what it holds before anything is learned.
        self.fixed = nn.Parameter(torch.randn(hidden, hidden) * 0.01)
        self.alpha = nn.Parameter(torch.rand(hidden, hidden) * 4 / hidden)
        self.output = nn.Linear(hidden, width)
        self.rate_logit = nn.Parameter(torch.tensor(0.1).logit())

    def start(self, batch: int) -> State:
        """Return h [B, hidden] and the trace [B, hidden, hidden], zeros."""
        h = self.fixed.new_zeros(batch, self.hidden)
        return h, h.new_zeros(batch, self.hidden, self.hidden)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, trace = self.start(len(x)) if state is None else state
        outputs, weight, rate = [], self.fixed.T, self.rate_logit.sigmoid()
        for given in self.inputs(x).unbind(1):
            found = torch.bmm(self.alpha * trace, h[:, :, None])[:, :, 0]
            after = (torch.addmm(given, h, weight) + self.read(found)).tanh()
            written = (rate * after)[:, :, None]
            trace = self.kept(torch.baddbmm((1 - rate) * trace, written, h[:, None, :]))
            h = after
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h, trace)

    def flops_per_step(self) -> int:
        """Return the products' operations, and 7 for each entry of the trace.

        Of these: 3 to read (alpha, a multiply-add) and 4 to change.
        """
        n = self.hidden
        return 4 * self.width * n + 2 * n * n + 7 * n * n
