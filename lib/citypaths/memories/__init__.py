"""Memories: stores of other paths beside a trained model, editable row by row."""

from citypaths.memories.cache import Cached, KeyValueCache, fit, states_of

__all__ = ["Cached", "KeyValueCache", "fit", "states_of"]
