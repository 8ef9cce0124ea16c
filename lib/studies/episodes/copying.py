"""The copy task (Graves, Wayne & Danihelka 2014): say again, in order, what was shown."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.core import Memory


def copy_batch(batch: int, length: int, bits: int, generator: torch.Generator) -> Tensor:
    """Return streams [B, 2 length + 2, bits + 2]: a flag, vectors of bits, a flag, silence.

    The last two numbers of a vector are the flags, before and after what is to be copied.
    """
    stream = torch.zeros(batch, 2 * length + 2, bits + 2)
    shape = (batch, length, bits)
    stream[:, 1 : length + 1, :bits] = torch.randint(2, shape, generator=generator).float()
    stream[:, 0, bits] = stream[:, length + 1, bits + 1] = 1.0
    return stream


class Copier(nn.Module):
    """A memory between a Linear from the copy task's vectors and one to its bits."""

    def __init__(self, memory: Memory, bits: int) -> None:
        super().__init__()
        self.into, self.memory = nn.Linear(bits + 2, memory.width), memory
        self.out = nn.Linear(memory.width, bits)

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, L, bits] for the silent steps, and the bits they should say."""
        length = stream.shape[1] // 2 - 1
        outputs, _ = self.memory(self.into(stream))
        return self.out(outputs[:, length + 2 :]), stream[:, 1 : length + 1, :-2]


def wrong_bits(logits: Tensor, bits: Tensor) -> Tensor:
    """Return the wrong bits a sequence, averaged over the batch, as a tensor of one number."""
    return ((logits > 0) != (bits > 0.5)).sum() / len(bits)


def train_copy(
    memory: Memory,
    steps: int,
    bits: int = 6,
    longest: int = 4,
    batch: int = 16,
    rate: float = 1e-3,
    every: int = 100,
    seed: int = 0,
    clip: float = 10.0,
) -> list[float]:
    """Train a memory to copy 1 to `longest` vectors; return wrong bits a sequence, every `every`.

    The numbers are means over the `every` training batches before each mark; batches are new ones
    every step. By chance they are bits * (longest + 1) / 4. The parameters change in place.

    Args:
        memory: any memory; a new Linear is put before and after it.
        rate: of Adam. clip: the longest gradient.
    """
    draw, device = torch.Generator().manual_seed(seed), memory.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copier = Copier(memory, bits).to(device)
    adam = torch.optim.Adam(copier.parameters(), rate)
    wrong, history = torch.zeros((), device=device), []
    for step in range(1, steps + 1):
        length = int(torch.randint(1, longest + 1, (), generator=draw))
        logits, said = copier(copy_batch(batch, length, bits, draw).to(device))
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(logits, said).backward()
        nn.utils.clip_grad_norm_(copier.parameters(), clip)
        adam.step()
        wrong += wrong_bits(logits.detach(), said)
        if step % every == 0:
            history.append(float(wrong) / every)
            wrong.zero_()
    return history
