"""Time and room of memories: a step of each, and how both grow with memory and with the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench import Line, interleaved, one_thread
from studies.episodes.model import MEMORIES, make_memory
from studies.memory import KeyValueCache
from studies.memory.streams import Memory, numbers_held

WIDTH, HIDDEN, STREAMS, STEPS, LONG = 64, 64, 32, 64, 512
GROWN: dict[str, tuple[str, tuple[int, ...]]] = {
    "xl": ("memory", (16, 64, 256)),
    "compressive": ("compressed", (16, 64, 256)),
    "memorizing": ("memory", (64, 256, 1024)),
    "ntm": ("slots", (16, 64, 256)),
    "dnc": ("slots", (16, 64, 256)),
    "associative": ("copies", (1, 4, 16)),
    "plastic": ("hidden", (32, 64, 128)),
}
ROWS = (1_000, 10_000, 100_000)


def bench_memories(rounds: int = 5) -> list[Line]:
    """Time every memory on one thread: a training step, growth with memory, and with the stream."""
    with one_thread():
        return [
            *training_lines(rounds),
            *memory_lines(rounds),
            *stream_lines(),
            *cache_lines(rounds),
        ]


def _stream(steps: int) -> torch.Tensor:
    return torch.randn(STREAMS, steps, WIDTH, generator=torch.Generator().manual_seed(0))


def _made(kind: str, **settings: Any) -> Memory:
    torch.manual_seed(0)
    return make_memory(kind, WIDTH, **{"hidden": HIDDEN} | settings)


def _training(memory: Memory, x: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        memory.zero_grad()
        memory(x)[0].square().mean().backward()

    return call


def _held(memory: Memory, x: torch.Tensor) -> int:
    """Numbers that one stream's state holds after x."""
    with torch.inference_mode():
        return numbers_held(memory(x[:1])[1])


def training_lines(rounds: int) -> list[Line]:
    """Time a training step of every memory, of one hidden size; ratios to the LSTM."""
    x, made = _stream(STEPS), {kind: _made(kind) for kind in MEMORIES}
    times = interleaved({kind: _training(memory, x) for kind, memory in made.items()}, rounds)
    what = f"training, width {WIDTH}, hidden {HIDDEN}, {STREAMS} streams of {STEPS}"
    return [
        (f"{what}: {kind}", _cost(took, made[kind], x), f"{took / times['lstm']:.1f}")
        for kind, took in times.items()
    ]


def _cost(took: float, memory: Memory, x: torch.Tensor) -> str:
    return f"{1000 * took / STEPS:.2f} ms a step, {_held(memory, x):,} numbers held"


def memory_lines(rounds: int) -> list[Line]:
    """Time a training step against the size of the memory; ratios to the smallest."""
    x, lines = _stream(STEPS), []
    for kind, (dial, sizes) in GROWN.items():
        made = {size: _made(kind, **{dial: size}) for size in sizes}
        times = interleaved({str(s): _training(m, x) for s, m in made.items()}, rounds)
        for size, memory in made.items():
            took, first = times[str(size)], times[str(sizes[0])]
            cost = _cost(took, memory, _stream(LONG))
            lines.append((f"{kind}, {dial} {size}", cost, f"{took / first:.2f}"))
    return lines


def stream_lines() -> Iterator[Line]:
    """Time steps late in a long stream, one by one; ratios to steps early in it.

    What a memory of bounded size costs does not grow with what it has read.
    """
    x = _stream(LONG)
    for kind in MEMORIES:
        memory = _made(kind).eval()
        with torch.inference_mode():
            full = {n: memory(x[:, :n])[1] for n in (STEPS, LONG - 16)}

            def read(state: Any, memory: Memory = memory) -> None:
                with torch.inference_mode():
                    for t in range(16):
                        _, state = memory(x[:, t : t + 1], state)

            times = interleaved({str(n): lambda s=s: read(s) for n, s in full.items()}, 3)
        short, long = times.values()
        grown = numbers_held(full[LONG - 16]) / numbers_held(full[STEPS])
        cost = f"{1000 * long / 16:.2f} ms a step, {grown:.1f} times the numbers held"
        yield f"{kind}, step {LONG} against step {STEPS}", cost, f"{long / short:.2f}"


def cache_lines(rounds: int, k: int = 64) -> list[Line]:
    """Time exact retrieval from a key-value cache against its rows; ratios to the smallest."""
    random = torch.Generator().manual_seed(0)
    calls = {}
    for rows in ROWS:
        keys = torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=random), dim=-1)
        ids = torch.arange(rows)
        cache, states = KeyValueCache(keys, ids, ids, ids), torch.randn(STREAMS, WIDTH)
        calls[f"{rows:,}"] = lambda c=cache, s=states: c.nearest(s, k)
    times = interleaved(calls, rounds)
    first = next(iter(times.values()))
    return [
        (f"cache of {rows} rows, {k} nearest", f"{1000 * took / STREAMS:.3f} ms a state",
         f"{took / first:.1f}")
        for rows, took in times.items()
    ]  # fmt: skip
