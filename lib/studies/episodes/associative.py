"""Associative memories: pairs bound and summed, an LSTM made of them, and Hebbian traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn

from studies.episodes.memory import Memory, at_least

Keys = Literal["gaussian", "unitary", "fhrr"]
State = tuple[Tensor, Tensor]


def bind(a: Tensor, b: Tensor) -> Tensor:
    """Return a bound to b, [..., d]: real ones by circular convolution (Plate 1995).

    Complex ones (FHRR) by their product; a convolution is a product too, in frequency.
    """
    if a.is_complex():
        return a * b
    return torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b), n=a.shape[-1])


def involution(a: Tensor) -> Tensor:
    """Return a's approximate inverse under `bind`, [..., d] (Plate 1995).

    Real: element i is a's element -i mod d; complex: the conjugate. It is the exact inverse where
    every frequency (or every complex component) has modulus 1.
    """
    return a.conj() if a.is_complex() else a.flip(-1).roll(1, -1)


def random_keys(
    kind: Keys, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return random keys of a shape [..., d].

    "gaussian": real, variance 1/d; "unitary": these with every frequency scaled to modulus 1
    (Ganesan et al. 2021); "fhrr": complex, each component of modulus 1 and uniform phase.
    """
    if kind == "fhrr":
        phase = torch.rand(*shape, generator=generator, dtype=dtype) * 2 * torch.pi
        return torch.polar(torch.ones_like(phase), phase)
    plain = torch.randn(*shape, generator=generator, dtype=dtype) / shape[-1] ** 0.5
    if kind == "gaussian":
        return plain
    return torch.fft.irfft(torch.fft.rfft(plain).sgn(), n=shape[-1])


def noise_law(kind: Keys, pairs: int, copies: int = 1, width: int = 1) -> float:
    """Return the energy of the noise on a retrieved value, in units of the value's energy.

    Each other of the K pairs adds 1, and a Gaussian key, which its involution inverts only on
    average, 1 more. S copies of `width` components divide it by S, but permutations agree here and
    there by chance: (K - 1) / S * (1 + (S - 1) / width).
    """
    crosstalk = pairs if kind == "gaussian" else pairs - 1
    return crosstalk / copies * (1 + (copies - 1) / width)


def permuted(keys: Tensor, permutations: Tensor) -> Tensor:
    """Return keys [..., n] in every copy's order, [..., S, n], for permutations [S, n].

    Complex keys are permuted whole: real and imaginary parts alike.
    """
    return _Permuted.apply(keys, permutations, permutations.argsort(-1))


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


def capacity(
    pairs: Sequence[int] = (1, 2, 4, 8, 16, 32),
    copies: Sequence[int] = (1, 2, 4, 8, 16, 32),
    width: int = 128,
    trials: int = 30,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the noise on values bound to keys and summed, beside its law.

    A trial sums bound pairs into one vector and asks for each of them. The number of pairs is
    turned for each kind of keys; copies are turned for "fhrr" keys, at the most pairs.

    Returns: columns keys, pairs, copies, `noise` (energy, in units of the value's) and `law`.
    """
    dials = [(kind, count, 1) for kind in get_args(Keys) for count in pairs]
    dials += [("fhrr", pairs[-1], some) for some in copies if some > 1]
    generator, rows = torch.Generator().manual_seed(seed), []
    for kind, count, some in dials:
        noise = sum(_noise(kind, count, some, width, generator) for _ in range(trials)) / trials
        row = {"keys": kind, "pairs": count, "copies": some, "noise": noise}
        rows.append(row | {"law": noise_law(kind, count, some, width)})
    return pd.DataFrame(rows)


def _noise(kind: Keys, pairs: int, copies: int, width: int, generator: torch.Generator) -> float:
    """Noise over value energy, averaged over the pairs of one sum."""
    keys = random_keys(kind, (pairs, width), generator)
    values = random_keys("fhrr" if kind == "fhrr" else "gaussian", (pairs, width), generator)
    orders = [torch.arange(width)]
    orders += [torch.randperm(width, generator=generator) for _ in range(copies - 1)]
    keys = permuted(keys, torch.stack(orders))
    store = bind(keys, values[:, None]).sum(0)
    off = bind(involution(keys), store).mean(1) - values
    return float(off.abs().square().sum() / values.abs().square().sum())


def bounded(z: Tensor) -> Tensor:
    """Return complex z with every modulus above 1 brought down to 1 (Danihelka et al. 2016)."""
    return z / z.abs().clamp_min(1.0)


class AssociativeLSTM(Memory):
    """An LSTM that adds values to its cell under keys and reads it with keys.

    Each step makes gates, a key to write with, a key to read with and a value from its input and
    its last output h (Danihelka et al. 2016). The memory is the cell: `copies` sums of bound pairs
    of `hidden` complex numbers, which differ in the order of the keys' components; h is twice as
    long as `hidden`. What the cell held before a step is what `tap` is given.
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
        """Return h [B, 2 hidden] and the cell [B, copies, hidden, 2], zeros."""
        zeros = self.output.weight.new_zeros
        return zeros(batch, 2 * self.hidden), zeros(batch, self.copies, self.hidden, 2)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        h, cell = self.start(len(x)) if state is None else state
        cell, weight, outputs = torch.view_as_complex(cell), self.recurrent.weight.T, []
        inverse = self.permutations.argsort(-1)
        for given in self.inputs(x).unbind(1):
            h, cell = self.step(torch.addmm(given, h, weight), cell, inverse)
            outputs.append(h)
        return self.output(torch.stack(outputs, 1)), (h, torch.view_as_real(cell))

    def step(self, made: Tensor, cell: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from the projections [B, 9 hidden]; return h and the cell."""
        n = self.hidden
        real, imaginary, gates = made.split((3 * n, 3 * n, 3 * n), 1)
        keep, add, show = gates.sigmoid().view(-1, 3, n).unbind(1)
        keys, value = bounded(torch.complex(real, imaginary)).split((2 * n, n), 1)
        keys = _Permuted.apply(keys.view(-1, 2, n), self.permutations, inverse)
        to_write, to_read = keys.unbind(1)
        before = cell * keep[:, None]
        cell = before + to_write * (add * value)[:, None]
        if self.rounding is not None:
            cell = torch.view_as_complex(self.kept(torch.view_as_real(cell)))
        found = (to_read * cell).mean(-2)
        if self.tap is not None:  # only what was held before: the step's own value is no memory
            old = (to_read * before).mean(-2)
            found = found - old + torch.view_as_complex(self.read(torch.view_as_real(old)))
        found = show * bounded(found)
        return torch.cat((found.real, found.imag), 1), cell

    def flops_per_step(self) -> int:
        """Return the products' operations and 18 per complex number of the cell.

        Of these: forgetting 2, binding and adding 8, reading 8. A component's gates, bounds and
        mean take about 50 more.
        """
        f = 2 * self.hidden
        products = 2 * (self.width + f) * 9 * self.hidden + 2 * f * self.width
        return products + 18 * self.copies * self.hidden + 50 * self.hidden


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
