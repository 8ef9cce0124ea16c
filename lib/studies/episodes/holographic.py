"""Holographic binding: many key-value pairs in one vector, and how much noise that costs.

Real vectors are bound by circular convolution (Plate 1995, HRR), complex ones componentwise (FHRR);
a circular convolution is componentwise too, in frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr
from torch import Tensor

Keys = Literal["gaussian", "unitary", "fhrr"]


def bind(a: Tensor, b: Tensor) -> Tensor:
    """Return a bound to b, [..., d], of the same type.

    Both real: their circular convolution; both complex: their product (Plate 1995).

    Raises:
        ValueError: one is real and the other complex.
    """
    if a.is_complex() != b.is_complex():
        raise ValueError("a real vector and a complex one cannot be bound")
    if a.is_complex():
        return a * b
    return torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b), n=a.shape[-1])


def involution(a: Tensor) -> Tensor:
    """Return a's approximate inverse under `bind`, [..., d] (Plate 1995).

    Real: element i is a's element -i mod d; complex: the conjugate. It is the exact inverse where
    every frequency (or every complex component) has modulus 1.
    """
    return a.conj() if a.is_complex() else a.flip(-1).roll(1, -1)


def unbind(key: Tensor, bound: Tensor) -> Tensor:
    """Return what `key` [..., d] was bound to in `bound` [..., d], plus noise."""
    return bind(involution(key), bound)


def unitary(a: Tensor) -> Tensor:
    """Return a [..., d] with every frequency (or complex component) scaled to modulus 1.

    Then `involution` is the exact inverse (Ganesan et al. 2021). What is zero becomes 1.
    """
    if a.is_complex():
        return torch.where(a == 0, 1, a.sgn())
    spectrum = torch.fft.rfft(a)
    return torch.fft.irfft(torch.where(spectrum == 0, 1, spectrum.sgn()), n=a.shape[-1])


def random_keys(
    kind: Keys,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return random keys of a shape [..., d], on the generator's device.

    Args:
        kind: "gaussian" (variance 1/d), "unitary" (those made `unitary`) or "fhrr": complex, each
            component of modulus 1 and uniform phase.

    Raises:
        ValueError: the kind is none of these.
    """
    if kind not in get_args(Keys):
        raise ValueError(f"keys are {', '.join(get_args(Keys))}, not {kind!r}")
    device = None if generator is None else generator.device
    if kind == "fhrr":
        phase = torch.rand(*shape, generator=generator, dtype=dtype, device=device) * 2 * torch.pi
        return torch.polar(torch.ones_like(phase), phase)
    plain = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
    plain = plain / shape[-1] ** 0.5
    return unitary(plain) if kind == "unitary" else plain


def noise_law(kind: Keys, pairs: int) -> float:
    """Return the energy of a retrieved value's noise, in units of the value's energy.

    Each other pair adds 1, and a Gaussian key, which its involution inverts only on average, 1
    more.
    """
    return float(pairs if kind == "gaussian" else pairs - 1)


def cosine_law(kind: Keys, pairs: int) -> float:
    """Return the cosine between a retrieved value and the value."""
    return (1 + noise_law(kind, pairs)) ** -0.5


def accuracy_law(kind: Keys, width: int, pairs: int, distractors: int) -> float:
    """Return about how often the value is nearer in cosine than every distractor.

    All similarities are taken as independent and normal; a complex component counts as two.
    """
    d, noise = (2 * width if kind == "fhrr" else width), noise_law(kind, pairs)
    # Along the value: a real value's own length varies, and so does what a Gaussian key gives back
    # of it: 4/d instead of 1/d, as both powers of a frequency, the key's and the value's, vary.
    along = {"gaussian": noise + 3.5, "unitary": noise + 0.5, "fhrr": noise}[kind] / d
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    margin = (1 + points * along**0.5) / ((1 + noise) / d) ** 0.5
    return float((weights * ndtr(margin) ** distractors).sum() / weights.sum())


def retrieval(
    widths: Sequence[int] = (256, 1024),
    pairs: Sequence[int] = (8, 16, 32, 64),
    kinds: Sequence[Keys] = get_args(Keys),
    distractors: int = 999,
    trials: int = 40,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Measure what comes back of values bound to keys and summed, beside the laws.

    A trial sums `pairs` bound pairs into one vector and asks for each of them. Values are Gaussian
    (variance 1/d) for real keys and like the keys for "fhrr".

    Returns:
        A row for each of kinds, widths and pairs: `noise` (energy, in units of the value's),
        `cosine`, `accuracy` (nearer in cosine than all distractors), and `..._law` of each.
    """
    rows = []
    generator = torch.Generator(device).manual_seed(seed)
    for kind, width, count in product(kinds, widths, pairs):
        measured = [_one_trial(kind, width, count, distractors, generator) for _ in range(trials)]
        noise, cosine, accuracy = torch.stack(measured).mean(0).tolist()
        rows.append(
            {"keys": kind, "width": width, "pairs": count}
            | {"noise": noise, "noise_law": noise_law(kind, count)}
            | {"cosine": cosine, "cosine_law": cosine_law(kind, count)}
            | {"accuracy": accuracy}
            | {"accuracy_law": accuracy_law(kind, width, count, distractors)}
        )
    return pd.DataFrame(rows)


def _one_trial(
    kind: Keys, width: int, pairs: int, distractors: int, generator: torch.Generator
) -> Tensor:
    """Return noise energy, cosine and accuracy, averaged over the pairs of one sum, [3]."""
    values_kind: Keys = "fhrr" if kind == "fhrr" else "gaussian"
    keys = random_keys(kind, (pairs, width), generator)
    values = random_keys(values_kind, (pairs, width), generator)
    others = random_keys(values_kind, (distractors, width), generator)
    back = unbind(keys, bind(keys, values).sum(0))
    noise = _energy(back - values).mean() / _energy(values).mean()
    right = _cosine(back, values)
    nearest = (_unit(back) @ _unit(others).mH).real.amax(1)
    return torch.stack([noise, right.mean(), (right > nearest).float().mean()])


def _energy(a: Tensor) -> Tensor:
    return a.abs().square().sum(-1)


def _unit(a: Tensor) -> Tensor:
    return a / _energy(a).sqrt()[..., None]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (_unit(a) * _unit(b).conj()).sum(-1).real
