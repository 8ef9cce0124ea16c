"""Memories: stores beside a trained model, and sequence models that carry one along a stream."""

from citypaths.memories.approximate import Probed, Truncated, recall, rounded
from citypaths.memories.cache import Cached, KeyValueCache, fit
from citypaths.memories.core import Memory, assert_pieces_agree, blanked, numbers_held, swapped
from citypaths.memories.keys import states_of
from citypaths.memories.private import Private, fit_private
from citypaths.memories.roads import Hops, Roads

__all__ = [
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
    "numbers_held",
    "recall",
    "rounded",
    "states_of",
    "swapped",
]
