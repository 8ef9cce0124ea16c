"""A memory of the known map, beside a trained model, and one that can be edited (notebook 07)."""

from studies.memory.cache import KeyValueCache, Private, Probed, Truncated
from studies.memory.mixture import Cached, Roads, fit

__all__ = ["Cached", "KeyValueCache", "Private", "Probed", "Roads", "Truncated", "fit"]
