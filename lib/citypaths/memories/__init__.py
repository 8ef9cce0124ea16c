"""Memories: stores beside a trained model, and sequence models that carry one along a stream."""

from __future__ import annotations

from typing import Any

from citypaths.memories.cache import Cached, KeyValueCache, fit, states_of
from citypaths.memories.core import Memory, assert_pieces_agree, blanked, numbers_held, swapped

MEMORIES: dict[str, type[Memory]] = {}


def make_memory(name: str, width: int, **settings: Any) -> Memory:
    """Build a memory by its name.

    Raises:
        KeyError: an unknown name; the message lists the known ones.
    """
    if name not in MEMORIES:
        raise KeyError(f"no memory {name!r}; there are: {', '.join(sorted(MEMORIES))}")
    return MEMORIES[name](width, **settings)


__all__ = [
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
