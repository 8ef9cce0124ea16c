"""Associative memories: an LSTM whose cell is a holographic store, and a net of Hebbian traces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from studies.memory.streams import Memory, at_least

State = tuple[Tensor, Tensor]


def bounded(z: Tensor) -> Tensor:
    """Return complex z with every modulus above 1 brought down to 1."""
    return z / z.abs().clamp_min(1.0)


class Permuted(torch.autograd.Function):
    """Keys [..., n] in the order of each of [S, n], whose gradient is the inverse's.

    To scatter gradients back, as indexing does, is many times slower.
    """

    @staticmethod
    def forward(ctx, keys: Tensor, permutations: Tensor) -> Tensor:
        ctx.save_for_backward(permutations)
        return keys[..., permutations]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        inverse = ctx.saved_tensors[0].argsort(-1)
        return grad.gather(-1, inverse.expand(grad.shape)).sum(-2), None


class AssociativeLSTM(Memory):
    """An LSTM that adds values to its cell under keys and reads it with keys.

    Its memory is the cell: `copies` sums of bound pairs of `hidden` complex numbers, which differ
    in the order of the keys' components (Danihelka et al. 2016). `tap` is given what the cell held.
    """

    def __init__(self, width: int, hidden: int = 64, copies: int = 4) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden, copies=copies)
        self.width, self.hidden, self.copies = width, hidden, copies
        self.inputs = nn.Linear(width, 9 * hidden)
        self.recurrent = nn.Linear(2 * hidden, 9 * hidden, bias=False)
        self.output = nn.Linear(2 * hidden, width)
        orders = [torch.randperm(hidden) for _ in range(copies)]
        self.register_buffer("permutations", torch.stack(orders))
        nn.init.xavier_uniform_(self.inputs.weight)
        nn.init.xavier_uniform_(self.recurrent.weight)
        nn.init.zeros_(self.inputs.bias)

    def start(self, batch: int) -> State:
        zeros = self.output.weight.new_zeros
        return zeros(batch, 2 * self.hidden), zeros(batch, self.copies, self.hidden, 2)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, cell = self.start(len(x)) if state is None else state
        cell, n, outputs = torch.view_as_complex(cell), self.hidden, []
        weight = self.recurrent.weight.T
        for given in self.inputs(x).unbind(1):
            real, imaginary, gates = torch.addmm(given, h, weight).split(3 * n, 1)
            keep, add, show = gates.sigmoid().view(-1, 3, n).unbind(1)
            keys, value = bounded(torch.complex(real, imaginary)).split((2 * n, n), 1)
            to_write, to_read = Permuted.apply(keys.view(-1, 2, n), self.permutations).unbind(1)
            before = cell * keep[:, None]
            cell = before + to_write * (add * value)[:, None]
            if self.rounding is not None:
                cell = torch.view_as_complex(self.kept(torch.view_as_real(cell)))
            found = (to_read * cell).mean(-2)
            if self.tap is not None:  # only what was held before: the step's own is no memory
                old = (to_read * before).mean(-2)
                found = found - old + torch.view_as_complex(self.read(torch.view_as_real(old)))
            found = show * bounded(found)
            h = torch.cat((found.real, found.imag), 1)
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h, torch.view_as_real(cell))

    def flops_per_step(self) -> int:
        """Return the products' operations, 18 per complex number of the cell, 50 per component.

        Of the 18: forgetting 2, binding and adding 8, reading 8. The 50: gates, bounds and mean.
        """
        f = 2 * self.hidden
        products = 2 * (self.width + f) * 9 * self.hidden + 2 * f * self.width
        return products + 18 * self.copies * self.hidden + 50 * self.hidden


class Plastic(Memory):
    """A recurrent network with weights w + alpha * trace, the trace made as it runs.

    h' = tanh(input + (w + alpha * trace) h), then trace' = (1 - rate) trace + rate h' h^T: the
    trace [hidden, hidden] of each stream is its memory and joins what a unit does to what another
    did a step before. w, alpha and the rate, within 0..1, are learned (Miconi et al. 2018).
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
        """Return the products' operations, and for an entry of the trace 3 to read, 4 to change."""
        n = self.hidden
        return 4 * self.width * n + 2 * n * n + (3 + 4) * n * n
