"""Memories: stores beside a trained model, and sequence models that carry one along a stream."""

from citypaths.memories.cache import Cached, KeyValueCache, fit, states_of
from citypaths.memories.core import Memory, assert_pieces_agree, blanked, numbers_held, swapped

__all__ = [
    "Cached",
    "KeyValueCache",
    "Memory",
    "assert_pieces_agree",
    "blanked",
    "fit",
    "numbers_held",
    "states_of",
    "swapped",
]
