"""The Differentiable Neural Computer (Graves et al. 2016), plain and improved."""

from __future__ import annotations

from functools import lru_cache, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.episodes.ntm import TINY, ControlledMemory, content_weights, sharpen, write


def used(usage: Tensor, write: Tensor, free: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Return usage [B, slots] after the last write, less what readers [B, R, slots] free [B, R].

    And the retention [B, slots]. No gradient goes to the write weights, as in the authors' code.
    """
    # A product of slices: the gradient of prod waits for the device.
    retention = reduce(torch.mul, (1 - free.unsqueeze(-1) * read).unbind(1))
    return torch.addcmul(usage, write.detach(), 1 - usage) * retention, retention


def allocation(usage: Tensor) -> Tensor:
    """Return the weights of where there is room [B, slots], the least used slot first.

    usage: [B, slots] in [0, 1]. The sum is 1 - the product of all usages.
    """
    used, order = (TINY + (1 - TINY) * usage).sort(stable=True, dim=-1)
    logs = used.log()
    room = (1 - used) * (logs.cumsum(-1) - logs).exp()
    return torch.zeros_like(room).scatter(-1, order, room)


def linked(link: Tensor, precedence: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """Return temporal link [B, slots, slots] and precedence [B, slots] after a write [B, slots]."""
    to, since = write.unsqueeze(-1), write.unsqueeze(-2)
    link = torch.baddbmm(link * ((1 - to) - since), to, precedence.unsqueeze(-2))
    precedence = (1 - write.sum(-1, keepdim=True)) * precedence + write
    return link * _off_diagonal(link.shape[-1], link.dtype, link.device), precedence


@lru_cache(8)
def _off_diagonal(slots: int, kind: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the same tensor may be wanted in training
        return 1 - torch.eye(slots, dtype=kind, device=device)


class Store(NamedTuple):
    """What a DNC holds: memory [B, slots, word], how far slots are taken, and in which order.

    link [i, j] is how far i was written just after j, precedence how far a slot was the last; write
    [B, slots] and read [B, heads, slots] are the weights of the last step.
    """

    memory: Tensor
    usage: Tensor
    link: Tensor
    precedence: Tensor
    write: Tensor
    read: Tensor


class DNC(ControlledMemory):
    """One head that writes where there is room, others that read on in the order of writing.

    `improved` are the three changes of Csordas & Schmidhuber (2019): keys look at some numbers of a
    word only (masks), what is freed is wiped and not only marked as free, and forward and backward
    reads are sharpened.
    """

    def __init__(
        self, width: int, hidden: int = 64, slots: int = 32, word: int = 16, heads: int = 2,
        improved: bool = False,
    ) -> None:  # fmt: skip
        self.improved, keys = improved, (heads + 1) * word
        positive = heads + 1 + (2 * heads if improved else 0)
        gates = word + heads + 2 + (keys if improved else 0)
        # keys; write vector; strengths and powers; erase vector, free, allocation and write gates
        # and masks; read modes. What both kinds of heads have, the writing head has last.
        parts = (keys, word, positive, gates, heads * 3)
        super().__init__(width, hidden, slots, word, heads, parts)

    def empty(self, batch: int) -> Store:
        zeros, slots = self.output.weight.new_zeros, self.slots
        none, link = zeros(batch, slots), zeros(batch, slots, slots)
        readers = zeros(batch, self.heads, slots)
        return Store(zeros(batch, slots, self.word), none, link, none, none, readers)

    def step(self, interface: Tensor, held: Store) -> tuple[Store, Tensor]:
        heads, word = self.heads, self.word
        keys, vector, positive, gates, modes = interface.split(self.parts, 1)
        keys = keys.unflatten(1, (heads + 1, word))
        strengths, powers = (1 + F.softplus(positive)).tensor_split((heads + 1,), 1)
        gates = gates.sigmoid().split((word, heads, 1, 1, self.parts[3] - word - heads - 2), 1)
        erase, free, allocate, write_gate, masks = gates
        masks = masks.unflatten(1, (heads + 1, word)) if self.improved else None

        def by_content(memory: Tensor, some: slice) -> Tensor:
            seen = None if masks is None else masks[:, some]
            return content_weights(memory, keys[:, some], strengths[:, some], seen)

        usage, retention = used(held.usage, held.write, free, held.read)
        content = by_content(held.memory, slice(heads, None)).squeeze(1)
        writer = write_gate * torch.lerp(content, allocation(usage), allocate)
        memory = held.memory * retention.unsqueeze(-1) if self.improved else held.memory
        memory = write(memory, writer.unsqueeze(1), erase.unsqueeze(1), vector.unsqueeze(1))
        memory = self.kept(memory)
        link, precedence = linked(held.link, held.precedence, writer)
        link = self.kept(link)

        content = by_content(memory, slice(heads))
        forward, backward = torch.bmm(held.read, link.mT), torch.bmm(held.read, link)
        if self.improved:
            both = sharpen(torch.cat((forward, backward), 1), powers, TINY)
            forward, backward = both.chunk(2, 1)
        modes = modes.unflatten(1, (heads, 3)).softmax(-1).split(1, 2)
        readers = torch.addcmul(modes[0] * backward, modes[1], content)
        readers = torch.addcmul(readers, modes[2], forward)
        rest = [self.kept(values) for values in (precedence, writer, readers)]
        return Store(memory, self.kept(usage), link, *rest), torch.bmm(readers, memory)

    def step_flops(self) -> int:
        slots, size, heads = self.slots, self.slots * self.word, self.heads
        interface = 4 * sum(self.parts) + 5 * (heads + 1) * self.word
        content = (4 if self.improved else 2) * (heads + 1) * size + 2 * (1 + self.improved) * size
        content += 6 * (heads + 1) * slots
        room = slots * (2 * heads + 5 + 10 + slots.bit_length() + 4)
        writes = 5 * size + (size if self.improved else 0)
        links = 6 * slots**2 + 4 * slots + 4 * heads * slots**2
        reads = heads * slots * (5 + (16 if self.improved else 0)) + 2 * heads * size
        return interface + content + room + writes + links + reads
