"""Memories: stores beside a trained model, and sequence models that carry one along a stream."""

from __future__ import annotations

from typing import Any

from citypaths.memories.approximate import Probed, Truncated, recall, rounded
from citypaths.memories.associative import AssociativeLSTM
from citypaths.memories.cache import Cached, KeyValueCache, fit
from citypaths.memories.compressive import Compressive
from citypaths.memories.core import Memory, assert_pieces_agree, blanked, numbers_held, swapped
from citypaths.memories.dnc import DNC
from citypaths.memories.keys import states_of
from citypaths.memories.lstm import LSTM
from citypaths.memories.memorizing import Memorizing
from citypaths.memories.ntm import NTM
from citypaths.memories.plastic import Plastic
from citypaths.memories.private import Private, fit_private
from citypaths.memories.roads import Hops, Roads
from citypaths.memories.transformer import Transformer
from citypaths.memories.xl import TransformerXL

MEMORIES: dict[str, type[Memory]] = {
    "lstm": LSTM,
    "transformer": Transformer,
    "xl": TransformerXL,
    "compressive": Compressive,
    "memorizing": Memorizing,
    "ntm": NTM,
    "dnc": DNC,
    "associative": AssociativeLSTM,
    "plastic": Plastic,
}


def make_memory(name: str, width: int, **settings: Any) -> Memory:
    """Build a memory by its name.

    Raises:
        KeyError: an unknown name; the message lists the known ones.
    """
    if name not in MEMORIES:
        raise KeyError(f"no memory {name!r}; there are: {', '.join(sorted(MEMORIES))}")
    return MEMORIES[name](width, **settings)


__all__ = [
    "LSTM",
    "MEMORIES",
    "Cached",
    "Hops",
    "KeyValueCache",
    "Memory",
    "Private",
    "Probed",
    "Roads",
    "Truncated",
    "assert_pieces_agree",
    "blanked",
    "fit",
    "fit_private",
    "make_memory",
    "numbers_held",
    "recall",
    "rounded",
    "states_of",
    "swapped",
]
