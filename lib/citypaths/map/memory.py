"""Refuse what cannot fit, with numbers, before it is begun."""

from __future__ import annotations

import psutil


def free_memory() -> float:
    """Return the bytes that may be asked for: nine tenths of what is free."""
    return 0.9 * psutil.virtual_memory().available


def require_memory(needed: float, what: str, remedy: str) -> None:
    """Check that so many bytes are free on this machine.

    Raises:
        MemoryError: names what was asked, how much it needs, how much there is, and the remedy.
    """
    free = free_memory()
    if needed > free:
        sizes = f"needs about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB may be used"
        raise MemoryError(f"{what} {sizes}: {remedy}")
