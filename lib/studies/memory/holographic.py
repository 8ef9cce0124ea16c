"""Holographic stores: key-value pairs bound and summed into one vector, and their noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from citypaths.plots import FAMILY, plain_log_ticks

Keys = Literal["gaussian", "unitary", "fhrr"]
COUNTS, COMPONENTS = (1, 2, 4, 8, 16, 32), 128  # of pairs and copies, and of a vector, measured
DOTS = {"gaussian": {"color": FAMILY["lstm"], "marker": "o", "ms": 6}}
DOTS |= {"unitary": {"color": FAMILY["gru"], "marker": "s", "ms": 7}}
DOTS |= {"fhrr": {"color": FAMILY["shortest"], "marker": "o", "ms": 4}}


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
    there by chance: (K - 1) / S * (1 + (S - 1) / width) (Danihelka et al. 2016).
    """
    crosstalk = pairs if kind == "gaussian" else pairs - 1
    return crosstalk / copies * (1 + (copies - 1) / width)


def capacity(trials: int = 30, seed: int = 0) -> pd.DataFrame:
    """Measure the noise on values bound to keys and summed, beside its law.

    A trial sums bound pairs into one vector of 128 components and asks for each of them: 1 to 32
    pairs for each kind of keys; 1 to 32 copies for 32 pairs with "fhrr" keys.

    Returns: columns keys, pairs, copies, `noise` (energy, in units of the value's) and `law`.
    """
    dials = [(kind, pairs, 1) for kind in get_args(Keys) for pairs in COUNTS]
    dials += [("fhrr", COUNTS[-1], copies) for copies in COUNTS[1:]]
    generator, rows = torch.Generator().manual_seed(seed), []
    for kind, pairs, copies in dials:
        noise = sum(_noise(kind, pairs, copies, generator) for _ in range(trials)) / trials
        rows.append((kind, pairs, copies, noise, noise_law(kind, pairs, copies, COMPONENTS)))
    return pd.DataFrame(rows, columns=["keys", "pairs", "copies", "noise", "law"])


def _noise(kind: Keys, pairs: int, copies: int, generator: torch.Generator) -> float:
    """Noise over value energy, averaged over the pairs of one sum."""
    keys = random_keys(kind, (pairs, COMPONENTS), generator)
    values = random_keys("fhrr" if kind == "fhrr" else "gaussian", keys.shape, generator)
    orders = [torch.randperm(COMPONENTS, generator=generator) for _ in range(copies - 1)]
    keys = keys[:, torch.stack([torch.arange(COMPONENTS), *orders])]
    store = bind(keys, values[:, None]).sum(0)
    off = bind(involution(keys), store).mean(1) - values
    return float(off.abs().square().sum() / values.abs().square().sum())


def draw_capacity(table: pd.DataFrame) -> Figure:
    """Draw the noise that `capacity` measured, as dots, over its law, as lines."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    table, most = table[table["law"] > 0], table["pairs"].max()
    several = table[(table["keys"] == "fhrr") & (table["pairs"] == most)]
    parts = {"pairs": table[table["copies"] == 1], "copies": several}
    for ax, (dial, part) in zip(axes, parts.items(), strict=True):
        for keys, some in part.groupby("keys", sort=False):
            ax.plot(some[dial], some["law"], color=DOTS[keys]["color"], lw=1)
            ax.plot(some[dial], some["noise"], ls="", label=keys, **DOTS[keys])
        ax.set(xscale="log", yscale="log")
        plain_log_ticks(ax, part[dial].unique())
    off = (table["noise"] / table["law"] - 1).abs().max()
    axes[0].set(xlabel="pairs in one vector", title="A bound pair adds a value's energy of noise")
    title = f"Copies divide it (law within {off:.0%})"
    axes[1].set(xlabel=f"copies of {most} fhrr pairs", title=title)
    axes[0].set_ylabel("energy of the noise / of the value")
    axes[0].legend(title="keys; line: the law")
    return fig
