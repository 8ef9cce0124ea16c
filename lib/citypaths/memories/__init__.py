"""Memories: stores beside a trained model, and sequence models that carry one along a stream."""

from __future__ import annotations

from typing import Any

from citypaths.memories.associative import AssociativeLSTM
from citypaths.memories.cache import Cached, KeyValueCache, fit, states_of
from citypaths.memories.compressive import Compressive
from citypaths.memories.core import Memory, assert_pieces_agree, blanked, numbers_held, swapped
from citypaths.memories.dnc import DNC
from citypaths.memories.lstm import LSTM
from citypaths.memories.memorizing import Memorizing
from citypaths.memories.ntm import NTM
from citypaths.memories.plastic import Plastic
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
    "KeyValueCache",
    "Memory",
    "assert_pieces_agree",
    "blanked",
    "fit",
    "make_memory",
    "numbers_held",
    "states_of",
    "swapped",
]
