"""Benchmarks; nothing imports them. All times are taken here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Line = tuple[str, str, str]  # what, measured, ratio
Call = Callable[[], Any]


def interleaved(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, made in turn so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):  # the first warms up
        for name, call in calls.items():
            times[name].append(once(call)[1])
    return {name: float(np.median(each[1:])) for name, each in times.items()}


def seconds(call: Call, rounds: int = 3) -> float:
    """Return the median seconds of one call after a first one."""
    return interleaved({"": call}, rounds)[""]


def once(call: Call, clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """Return what a call returns and the seconds it takes."""
    began = clock()
    result = call()
    return result, clock() - began


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread within the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def lines(
    what: str, times: dict[str, float], unit: str, tell: Callable[[float], str], missing=()
) -> list[Line]:
    """Return a line for each name's seconds, as `tell` says them, with its ratio to `unit`'s."""
    told = [(f"{what}: {n}", tell(t), f"{t / times[unit]:.2f}") for n, t in times.items()]
    return told + [(f"{what}: {name}", "not installed", "") for name in missing]
