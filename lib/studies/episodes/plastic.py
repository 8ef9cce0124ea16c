"""Differentiable plasticity: a recurrent network whose connections change as it runs."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from studies.episodes.core import Memory

Rule = Literal["decay", "oja", "modulated", "retroactive"]
State = tuple[Tensor, ...]


def hebbian(trace: Tensor, keep: Tensor, write: Tensor, before: Tensor) -> Tensor:
    """Return keep * trace + write before^T, [B, n, n]: rows are units after, columns before.

    Args:
        keep: broadcast against the trace. write, before: [B, n].
    """
    return torch.baddbmm(keep * trace, write[:, :, None], before[:, None, :])


def decayed(trace: Tensor, after: Tensor, before: Tensor, rate: Tensor) -> Tensor:
    """Return (1 - rate) trace + rate after before^T, [B, n, n] (Miconi et al. 2018)."""
    return hebbian(trace, 1 - rate, rate * after, before)


def oja(trace: Tensor, after: Tensor, before: Tensor, rate: Tensor) -> Tensor:
    """Return trace + rate after (before - after trace), [B, n, n] (Oja 1982; Miconi et al. 2018).

    Each entry moves by rate after^2 of the way to before / after, so for a rate up to 1 and units
    within -1..1 it stays between the quotients seen.
    """
    written = rate * after
    return hebbian(trace, (1 - written * after)[:, :, None], written, before)


class Plastic(Memory):
    """A recurrent network with weights w + alpha * trace, the trace made as it runs.

    h' = tanh(input + (w + alpha * trace) h); the trace [hidden, hidden] of each stream is its
    memory and joins what a unit does to what another did a step before. w, alpha, and the rate or
    the modulation are learned by gradient.

    Args:
        width: numbers of each input and output. hidden: recurrent units.
        rule: how the trace changes. "decay" and "oja" with a learned rate (Miconi et al. 2018);
            "modulated" adds M * h' h^T, with M computed from h'; "retroactive" adds M times a
            decaying trace of those products (Miconi et al. 2019). Both keep it within -1..1.
        rate: the learned rate to begin with; it stays within 0..1. "modulated" has none.

    Raises:
        ValueError: a size below 1, a rate not within 0..1, or an unknown rule.
    """

    def __init__(
        self, width: int, hidden: int = 64, rule: Rule = "decay", rate: float = 0.1
    ) -> None:
        super().__init__()
        if min(width, hidden) < 1 or not 0 < rate < 1 or rule not in get_args(Rule):
            known = ", ".join(get_args(Rule))
            raise ValueError(f"Plastic: sizes of at least 1, 0 < rate < 1 and a rule of {known}")
        self.width, self.hidden, self.rule = width, hidden, rule
        self.inputs = nn.Linear(width, hidden)
        # Small, so that what was seen before does not echo into the keys; alpha is positive, so
        # that a trace gives back what it holds before anything is learned.
        self.fixed = nn.Parameter(torch.randn(hidden, hidden) * 0.01)
        self.alpha = nn.Parameter(torch.rand(hidden, hidden) * 4 / hidden)
        self.output = nn.Linear(hidden, width)
        if rule != "modulated":
            self.rate_logit = nn.Parameter(torch.tensor(rate).logit())
        if rule in ("modulated", "retroactive"):
            self.signal, self.fan_out = nn.Linear(hidden, 1), nn.Linear(1, hidden)

    @property
    def rate(self) -> Tensor:
        """The learned rate."""
        return self.rate_logit.sigmoid()

    def start(self, batch: int) -> State:
        """Return h [B, hidden] and the trace [B, hidden, hidden], zeros.

        "retroactive" also holds the products that are yet to be added, [B, hidden, hidden].
        """
        traces = 2 if self.rule == "retroactive" else 1
        h = self.fixed.new_zeros(batch, self.hidden)
        return h, *(h.new_zeros(batch, self.hidden, self.hidden) for _ in range(traces))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See `Memory.forward`."""
        h, *traces = self.start(len(x)) if state is None else state
        outputs, weight, rate = [], self.fixed.T, self._rate_or_none()
        for given in self.inputs(x).unbind(1):
            found = torch.bmm(self.alpha * traces[0], h[:, :, None])[:, :, 0]
            after = (torch.addmm(given, h, weight) + self.read(found)).tanh()
            traces = [self.kept(trace) for trace in self._changed(traces, after, h, rate)]
            h = after
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h, *traces)

    def _rate_or_none(self) -> Tensor | None:
        return None if self.rule == "modulated" else self.rate

    def _changed(
        self, traces: list[Tensor], after: Tensor, before: Tensor, rate: Tensor | None
    ) -> list[Tensor]:
        """Return the traces after a step that took h from `before` to `after`."""
        if self.rule in ("decay", "oja"):
            return [(decayed if self.rule == "decay" else oja)(traces[0], after, before, rate)]
        modulation = self.fan_out(self.signal(after).tanh())
        if self.rule == "modulated":
            grown = torch.baddbmm(traces[0], (modulation * after)[:, :, None], before[:, None, :])
            return [grown.clamp(-1, 1)]
        trace, eligible = traces
        grown = torch.addcmul(trace, modulation[:, :, None], eligible).clamp(-1, 1)
        return [grown, decayed(eligible, after, before, rate)]

    def flops_per_step(self) -> int:
        """Return the products' operations and those of each entry of the traces.

        An entry takes 3 to read (alpha, a multiply-add), and to change: decay 4, oja 5, modulated
        2 and clipping 2, retroactive 8.
        """
        n = self.hidden
        change = {"decay": 4, "oja": 5, "modulated": 4, "retroactive": 8}[self.rule]
        signal = 0 if self.rule in ("decay", "oja") else 5 * n
        return 4 * self.width * n + 2 * n * n + (3 + change) * n * n + signal
