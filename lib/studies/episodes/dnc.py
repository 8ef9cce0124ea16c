"""The Differentiable Neural Computer (Graves et al. 2016), plain and with three repairs."""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.episodes.addressing import TINY, aimed, allocated, by_content, sharpened, written
from studies.episodes.controlled import ControlledMemory


class Store(NamedTuple):
    """What a DNC holds.

    Attributes:
        memory: [B, slots, word]. usage: [B, slots], how far a slot is taken.
        link: [B, slots, slots], L[i, j] how far i was written just after j.
        last: [B, slots], how far a slot was the last written.
        write: [B, slots] and read: [B, heads, slots], the weights of the last step.
    """

    memory: Tensor
    usage: Tensor
    link: Tensor
    last: Tensor
    write: Tensor
    read: Tensor


class Told(NamedTuple):
    """What the controller tells the store; the writer is the last of the heads where they share.

    Attributes:
        aims: [B, heads + 1, word]. masks: the same, or None. free: [B, heads].
        gates: [B, 2], to allocate and to write. erase, vector: [B, 1, word].
        modes: [B, heads, 3], backward, by content, forward. powers: [B, 2 heads] or None.
    """

    aims: Tensor
    masks: Tensor | None
    free: Tensor
    gates: Tensor
    erase: Tensor
    vector: Tensor
    modes: Tensor
    powers: Tensor | None


class DNC(ControlledMemory):
    """One writer that finds room, readers that follow the order of writing (Graves 2016).

    Args:
        width: numbers in each input and output. hidden: units of the LSTM. slots, word: the memory.
        heads: vectors read a step.
        masked: keys look at some numbers of a word only (Csordas & Schmidhuber 2019).
        freed: what is deallocated is wiped, not only marked as free (the same).
        sharpened: forward and backward reads are sharpened (the same).

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 64,
        slots: int = 32,
        word: int = 16,
        heads: int = 2,
        masked: bool = False,
        freed: bool = False,
        sharpened: bool = False,
    ) -> None:
        self.masked, self.freed, self.sharpened = masked, freed, sharpened
        keys = (heads + 1) * word
        positive = heads + 1 + (2 * heads if sharpened else 0)
        gates = word + heads + 2 + (keys if masked else 0)
        # keys; the vector to write; strengths and sharpness; gates; modes
        self.parts = (keys, word, positive, gates, heads * 3)
        super().__init__(width, hidden, slots, word, heads, sum(self.parts))

    def empty(self, batch: int) -> Store:
        """Return an empty store."""
        zeros, slots = self.output.weight.new_zeros, self.slots
        rows = [zeros(batch, slots) for _ in range(3)]
        link, read = zeros(batch, slots, slots), zeros(batch, self.heads, slots)
        return Store(zeros(batch, slots, self.word), rows[0], link, rows[1], rows[2], read)

    def told(self, told: Tensor) -> Told:
        """Return what the numbers of the interface mean; told: [B, numbers]."""
        heads, word = self.heads, self.word
        keys, vector, positive, gates, modes = told.split(self.parts, 1)
        positive, gates = 1 + F.softplus(positive), gates.sigmoid()
        masks = (
            gates[:, word + heads + 2 :].unflatten(1, (heads + 1, word)) if self.masked else None
        )
        erase, free, gates = gates[:, : word + heads + 2].split((word, heads, 2), 1)
        return Told(
            aimed(keys.unflatten(1, (heads + 1, word)), positive[:, : heads + 1], masks),
            masks,
            free,
            gates,
            erase.unsqueeze(1),
            vector.unsqueeze(1),
            modes.unflatten(1, (heads, 3)).softmax(-1),
            positive[:, heads + 1 :] if self.sharpened else None,
        )

    def step(self, told: Tensor, held: Store) -> tuple[Store, Tensor]:
        """Free, write, link and read; told: [B, numbers of the interface]."""
        said = self.told(told)
        stays = retention(said.free, held.read)
        usage = used(held.usage, held.write, stays)
        write = self.written_where(said, held.memory, usage)
        memory = held.memory * stays.unsqueeze(-1) if self.freed else held.memory
        memory = self.kept(written(memory, write.unsqueeze(1), said.erase, said.vector))
        link = self.kept(linked(held.link, held.last, write))
        last = latest(held.last, write)
        read = self.read_where(said, memory, link, held.read)
        kept = [self.kept(values) for values in (last, write, read)]
        return Store(memory, self.kept(usage), link, *kept), torch.bmm(read, memory)

    def written_where(self, said: Told, memory: Tensor, usage: Tensor) -> Tensor:
        """Return the weights of the writer, [B, slots]."""
        masks = None if said.masks is None else said.masks[:, self.heads :]
        content = by_content(memory, said.aims[:, self.heads :], masks).squeeze(1)
        allocate, write = said.gates.split(1, 1)
        return write * torch.lerp(content, allocated(usage), allocate)

    def read_where(self, said: Told, memory: Tensor, link: Tensor, before: Tensor) -> Tensor:
        """Return the weights of the readers, [B, heads, slots]."""
        masks = None if said.masks is None else said.masks[:, : self.heads]
        content = by_content(memory, said.aims[:, : self.heads], masks)
        on, back = torch.bmm(before, link.mT), torch.bmm(before, link)
        if said.powers is not None:
            both = sharpened(torch.cat((on, back), 1), said.powers, TINY)
            on, back = both.chunk(2, 1)
        modes = said.modes.split(1, 2)
        return torch.addcmul(torch.addcmul(modes[0] * back, modes[1], content), modes[2], on)

    def step_flops(self) -> int:
        """Return the operations of `step` for one stream."""
        slots, size, heads = self.slots, self.slots * self.word, self.heads
        told = 4 * sum(self.parts) + 5 * (heads + 1) * self.word
        content = (2 if not self.masked else 4) * (heads + 1) * size + 2 * (1 + self.masked) * size
        content += 6 * (heads + 1) * slots
        room = slots * (2 * heads + 5 + 10 + slots.bit_length() + 4)
        writes = 5 * size + (size if self.freed else 0)
        links = 6 * slots**2 + 4 * slots + 4 * heads * slots**2
        reads = heads * slots * (5 + (16 if self.sharpened else 0)) + 2 * heads * size
        return told + content + room + writes + links + reads


def retention(free: Tensor, read: Tensor) -> Tensor:
    """Return how far slots stay taken, [B, slots], after readers [B, R, slots] freed [B, R]."""
    # A product of slices: the gradient of prod waits for the device.
    return reduce(torch.mul, (1 - free.unsqueeze(-1) * read).unbind(1))


def used(usage: Tensor, write: Tensor, stays: Tensor) -> Tensor:
    """Return the usage [B, slots] after the last write, less what is freed.

    No gradient goes to the write weights, as in the authors' own implementation.
    """
    return torch.addcmul(usage, write.detach(), 1 - usage) * stays


def linked(link: Tensor, last: Tensor, write: Tensor) -> Tensor:
    """Return link [B, slots, slots] after a write [B, slots] that follows `last` [B, slots]."""
    to, since = write.unsqueeze(-1), write.unsqueeze(-2)
    link = torch.baddbmm(link * ((1 - to) - since), to, last.unsqueeze(-2))
    return link * others(link.shape[-1], link.dtype, link.device)


@lru_cache(8)
def others(slots: int, kind: torch.dtype, device: torch.device) -> Tensor:
    """Return [slots, slots] with 0 on the diagonal, else 1."""
    with torch.inference_mode(False):  # the same tensor may be wanted in training
        return 1 - torch.eye(slots, dtype=kind, device=device)


def latest(last: Tensor, write: Tensor) -> Tensor:
    """Return how far a slot was the last written [B, slots], after a write [B, slots]."""
    return (1 - write.sum(-1, keepdim=True)) * last + write
