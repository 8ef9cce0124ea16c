"""A memory of the known map, beside a trained model, and one that can be edited (notebook 07)."""

from studies.memory.approximate import Probed, Truncated, recall, rounded
from studies.memory.cache import Cached, KeyValueCache, fit
from studies.memory.keys import states_of
from studies.memory.private import Private, fit_private
from studies.memory.roads import Hops, Roads

__all__ = [
    "Cached",
    "Hops",
    "KeyValueCache",
    "Private",
    "Probed",
    "Roads",
    "Truncated",
    "fit",
    "fit_private",
    "recall",
    "rounded",
    "states_of",
]
