"""The copy task (Graves et al. 2014): say again, in order, what was shown."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from citypaths.plots import FAMILY, INK
from studies.memory.streams import Memory

BITS, LONGEST, BATCH, RATE, EVERY = 6, 8, 16, 1e-2, 40
CHANCE = BITS * (LONGEST + 1) / 4  # wrong bits a sequence


def copy_batch(length: int, draw: torch.Generator) -> Tensor:
    """Return streams [16, 2 length + 2, 8]: a flag, vectors of 6 bits, a flag, silence.

    The last two numbers of a vector are the flags.
    """
    stream = torch.zeros(BATCH, 2 * length + 2, BITS + 2)
    bits = torch.randint(2, (BATCH, length, BITS), generator=draw)
    stream[:, 1 : length + 1, :BITS] = bits.float()
    stream[:, 0, BITS] = stream[:, length + 1, BITS + 1] = 1.0
    return stream


def train_copies(memories: Mapping[str, Memory], steps: int, seed: int = 0) -> pd.DataFrame:
    """Train memories of width 8, in place, to say 1 to 8 vectors again.

    Every step is Adam's (Kingma & Ba 2015) on 16 new sequences, the same for all.

    Returns: columns memory, parameters, sequences (shown so far) and wrong_bits (a sequence, the
    mean over the last 40 steps).
    """
    rows = []
    for name, memory in memories.items():
        draw, wrong = torch.Generator().manual_seed(seed), 0.0
        adam = torch.optim.Adam(memory.parameters(), RATE)
        for step in range(1, steps + 1):
            length = int(torch.randint(1, LONGEST + 1, (), generator=draw))
            stream = copy_batch(length, draw)
            bits, said = stream[:, 1 : length + 1, :-2], memory(stream)[0][:, length + 2 :, :-2]
            adam.zero_grad()
            F.binary_cross_entropy_with_logits(said, bits).backward()
            nn.utils.clip_grad_norm_(memory.parameters(), 10.0)
            adam.step()
            wrong += float(((said > 0) != (bits > 0.5)).sum()) / BATCH / EVERY
            if step % EVERY == 0:
                rows.append((name, memory.parameters_count, BATCH * step, wrong))
                wrong = 0.0
    return pd.DataFrame(rows, columns=["memory", "parameters", "sequences", "wrong_bits"])


def draw_copies(curves: pd.DataFrame) -> Figure:
    """Draw wrong bits a copied sequence against sequences shown, a line a memory."""
    fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    ax.axhline(CHANCE, color=FAMILY["floor"], ls=":")
    ends = []
    for (memory, parameters), part in curves.groupby(["memory", "parameters"], sort=False):
        colour, side = (FAMILY["lstm"], "bottom") if memory == "lstm" else (INK, "top")
        ax.plot(part["sequences"], part["wrong_bits"], color=colour, marker="o", ms=4)
        end = part.iloc[-1][["sequences", "wrong_bits"]].tolist()
        ends.append(f"{memory} {end[1]:.1f}")
        name = f"  {memory}, {parameters:,} parameters"
        ax.annotate(name, end, color=colour, va=side, annotation_clip=False)
    ax.set(xlabel="sequences shown", ylabel="wrong bits a sequence", ylim=(0, None))
    ax.set_title(f"Wrong bits at the end: {' and '.join(ends)} (chance {CHANCE:.1f})")
    return fig
