"""The memories by name."""

from __future__ import annotations

from typing import Any

from studies.episodes.associative import AssociativeLSTM
from studies.episodes.compressive import Compressive
from studies.episodes.core import Memory
from studies.episodes.dnc import DNC
from studies.episodes.lstm import LSTM
from studies.episodes.memorizing import Memorizing
from studies.episodes.ntm import NTM
from studies.episodes.plastic import Plastic
from studies.episodes.transformer import Transformer
from studies.episodes.xl import TransformerXL

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
