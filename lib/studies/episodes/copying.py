"""The copy task (Graves et al. 2014): say again, in order, what was shown."""

from __future__ import annotations

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.sizes import Size
from studies.episodes.memory import Memory
from studies.episodes.model import make_memory

BITS, LONGEST, BATCH, RATE = 6, 8, 16, 1e-2
PAIR = {"lstm": {"hidden": 64}, "ntm": {"hidden": 32, "slots": 16, "word": 12}}
CHANCE = BITS * (LONGEST + 1) / 4  # wrong bits a sequence


def copy_batch(batch: int, length: int, bits: int, generator: torch.Generator) -> Tensor:
    """Return streams [B, 2 length + 2, bits + 2]: a flag, vectors of bits, a flag, silence.

    The last two numbers of a vector are the flags, before and after what is to be copied.
    """
    stream = torch.zeros(batch, 2 * length + 2, bits + 2)
    shape = (batch, length, bits)
    stream[:, 1 : length + 1, :bits] = torch.randint(2, shape, generator=generator).float()
    stream[:, 0, bits] = stream[:, length + 1, bits + 1] = 1.0
    return stream


def said(memory: Memory, stream: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [B, L, bits] for the silent steps, and the bits they should say."""
    length = stream.shape[1] // 2 - 1
    return memory(stream)[0][:, length + 2 :, :-2], stream[:, 1 : length + 1, :-2]


def wrong_bits(logits: Tensor, bits: Tensor) -> float:
    """Return the wrong bits a sequence, averaged over the batch."""
    return float(((logits > 0) != (bits > 0.5)).sum() / len(bits))


def train_copy(
    memory: Memory, steps: int, longest: int = LONGEST, every: int = 40, seed: int = 0
) -> pd.DataFrame:
    """Train a memory to copy 1 to `longest` vectors of its width less two flags.

    Every step is Adam's (Kingma & Ba 2015) on 16 new sequences. The parameters change in place.

    Returns: columns sequences (shown so far) and wrong_bits (a sequence, the mean over the last
    `every` batches).
    """
    draw, adam = torch.Generator().manual_seed(seed), torch.optim.Adam(memory.parameters(), RATE)
    wrong, rows = 0.0, []
    for step in range(1, steps + 1):
        length = int(torch.randint(1, longest + 1, (), generator=draw))
        logits, bits = said(memory, copy_batch(BATCH, length, memory.width - 2, draw))
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(logits, bits).backward()
        nn.utils.clip_grad_norm_(memory.parameters(), 10.0)
        adam.step()
        wrong += wrong_bits(logits.detach(), bits) / every
        if step % every == 0:
            rows.append({"sequences": BATCH * step, "wrong_bits": wrong})
            wrong = 0.0
    return pd.DataFrame(rows)


def copy_curves(size: Size, seed: int = 0) -> pd.DataFrame:
    """Train an NTM, and an LSTM of twice its parameters, to copy up to 8 vectors of 6 bits.

    Returns: the columns of `train_copy`, with memory and parameters.
    """
    curves = []
    for kind, shape in PAIR.items():
        torch.manual_seed(seed)
        memory = make_memory(kind, BITS + 2, **shape)
        curve = train_copy(memory, 80 if size.name == "tiny" else 400, seed=seed)
        curves.append(curve.assign(memory=kind, parameters=memory.parameters_count))
    return pd.concat(curves, ignore_index=True)
