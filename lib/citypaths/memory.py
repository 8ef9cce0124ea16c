"""Refuse what cannot fit, with numbers, before it is begun."""

from __future__ import annotations

import psutil


def require_memory(needed: float, what: str, remedy: str) -> None:
    """Check that so many bytes are free on this machine.

    Raises:
        MemoryError: names what was asked, how much it needs, how much there is, and the remedy.
    """
    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        sizes = f"needs about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free"
        raise MemoryError(f"{what} {sizes}: {remedy}")
