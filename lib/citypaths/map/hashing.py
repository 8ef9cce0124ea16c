"""Random numbers that depend on what they are for, never on the order they are asked in."""

from __future__ import annotations

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x):
    """One round of SplitMix64's finalizer (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unit_hash(seed: int, *keys) -> np.ndarray:
    """Return uniform numbers in [0, 1), float64, one for each (seed, key, key, ...).

    Args: integer arrays whose shapes broadcast. The same keys give the same number anywhere.
    """
    return (hash_state(seed, *keys) >> np.uint64(11)) * 2.0**-53


def hash_state(seed: int, *keys) -> np.ndarray:
    """Return the uint64 states behind `unit_hash`; `hash_next` takes them one key further."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed % 2**64) + _GOLDEN)
        for key in keys:
            state = _mix((state ^ np.asarray(key).astype(np.uint64)) + _GOLDEN)
    return state


_mix_compiled = njit(_mix, inline="always")


@njit(inline="always")
def hash_next(state, key):
    """Return, in compiled code, 2^53 times `unit_hash(..., key)`, from the state before the key."""
    return np.int64(_mix_compiled((state ^ np.uint64(key)) + _GOLDEN) >> np.uint64(11))
