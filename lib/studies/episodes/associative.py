"""Associative LSTM: an LSTM whose cell is a holographic store in several copies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from studies.episodes.core import Memory

State = tuple[Tensor, Tensor]


def bounded(z: Tensor) -> Tensor:
    """Return complex z with every modulus above 1 brought down to 1 (Danihelka et al. 2016)."""
    return z / z.abs().clamp_min(1.0)


def permuted(keys: Tensor, permutations: Tensor) -> Tensor:
    """Return keys [..., n] in every copy's order, [..., S, n], for permutations [S, n].

    Complex keys are permuted whole: real and imaginary parts alike.
    """
    return _Permuted.apply(keys, permutations, permutations.argsort(-1))


def write(copies: Tensor, keys: Tensor, value: Tensor) -> Tensor:
    """Return copies [..., S, n] with value [..., n] added under `permuted` keys [..., S, n]."""
    return copies + keys * value[..., None, :]


def recall(copies: Tensor, keys: Tensor) -> Tensor:
    """Return what copies [..., S, n] hold under `permuted` keys [..., S, n], averaged: [..., n].

    A key of modulus 1 finds what was written under its conjugate. The other K - 1 pairs' noise has
    energy (K - 1) / S * (1 + (S - 1) / n) per component: permutations agree here and there by
    chance, so copies are not quite independent.
    """
    return (keys * copies).mean(-2)


class _Permuted(torch.autograd.Function):
    """Indexing whose gradient is the inverse's: scattering back is many times slower."""

    @staticmethod
    def forward(ctx, keys: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return keys[..., order]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.gather(-1, inverse.expand(grad.shape)).sum(-2), None, None


class AssociativeLSTM(Memory):
    """An LSTM that adds values to its cell under keys and reads it with keys.

    Each step makes gates, a key to write with, a key to read with and a value from its input and
    its last output h (Danihelka et al. 2016). The memory is the cell: `copies` sums of bound pairs,
    which differ in the order of the keys' components; what it held before a step is what is read.

    Args:
        width: numbers of each input and output. hidden: complex components (h is twice as long).
        copies: redundant copies of the cell, each of `hidden` complex numbers.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, width: int, hidden: int = 64, copies: int = 4) -> None:
        super().__init__()
        if min(width, hidden, copies) < 1:
            raise ValueError("an AssociativeLSTM's width, hidden and copies are at least 1")
        self.width, self.hidden, self.copies = width, hidden, copies
        self.inputs = nn.Linear(width, 9 * hidden)
        self.recurrent = nn.Linear(2 * hidden, 9 * hidden, bias=False)
        self.output = nn.Linear(2 * hidden, width)
        orders = [torch.randperm(hidden) for _ in range(copies)]
        self.register_buffer("permutations", torch.stack(orders))
        self._initialise()

    def _initialise(self) -> None:
        for layer in (self.inputs, self.recurrent):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.inputs.bias)

    def start(self, batch: int) -> State:
        """Return h [B, 2 hidden] and the cell [B, copies, hidden, 2], zeros."""
        like = self.output.weight
        cell = like.new_zeros(batch, self.copies, self.hidden, 2)
        return like.new_zeros(batch, 2 * self.hidden), cell

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See `Memory.forward`."""
        h, cell = self.start(len(x)) if state is None else state
        cell, weight, outputs = torch.view_as_complex(cell), self.recurrent.weight.T, []
        inverse = self.permutations.argsort(-1)
        for given in self.inputs(x).unbind(1):
            h, cell = self._step(torch.addmm(given, h, weight), cell, inverse)
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h, torch.view_as_real(cell))

    def _step(self, made: Tensor, cell: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from the projections [B, 9 hidden]; return h and the cell."""
        n = self.hidden
        real, imaginary, gates = made.split((3 * n, 3 * n, 3 * n), 1)
        keep, add, show = gates.sigmoid().view(-1, 3, n).unbind(1)
        keys, value = bounded(torch.complex(real, imaginary)).split((2 * n, n), 1)
        keys = _Permuted.apply(keys.view(-1, 2, n), self.permutations, inverse)
        to_write, to_read = keys.unbind(1)
        before = cell * keep[:, None]
        cell = self._kept(write(before, to_write, add * value))
        found = recall(cell, to_read)
        if self.tap is not None:  # only what was held before: the step's own value is no memory
            old = recall(before, to_read)
            found = found - old + torch.view_as_complex(self.read(torch.view_as_real(old)))
        found = show * bounded(found)
        return torch.cat((found.real, found.imag), 1), cell

    def _kept(self, cell: Tensor) -> Tensor:
        if self.rounding is None:
            return cell
        return torch.view_as_complex(self.kept(torch.view_as_real(cell)))

    def flops_per_step(self) -> int:
        """Return the products' operations and 18 per complex number of the cell.

        Of these: forgetting 2, binding and adding 8, reading 8. A component's gates, bounds and
        mean take about 50 more.
        """
        f = 2 * self.hidden
        products = 2 * (self.width + f) * 9 * self.hidden + 2 * f * self.width
        return products + 18 * self.copies * self.hidden + 50 * self.hidden
