"""Decoding: from a model and queries to paths, with the compute each query spent.

Closed-book decoding sees the model alone. With `checked_by=graph` every proposed hop is looked up
(is it an edge?) before it is taken, and look-ups are counted: candidates are tried from the most
probable down until enough legal ones are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel

NEVER = float("-inf")
SYNC_EVERY = 8  # steps between asking the device whether all paths have ended


@dataclass(frozen=True)
class Moves:
    """Legal hops on a device: neighbour ids [V, most], padded with the dump column V."""

    table: Tensor

    @classmethod
    def of(cls, graph: CityGraph, device: torch.device) -> Moves:
        return cls(torch.as_tensor(graph.neighbour_table, device=device))

    def mask(self, city: Tensor, scores: Tensor) -> Tensor:
        """Return scores [N, V] with illegal hops from `city` [N] at minus infinity."""
        allowed = scores.new_full((len(city), scores.shape[1] + 1), NEVER)
        return allowed.scatter(1, self.table[city], 0.0)[:, :-1] + scores


def greedy(model: PathModel, source, target, max_hops: int, **options) -> Found:
    """Take the most probable city at every step; options: `checked_by`, `loops`, `batch`."""
    return _decoded(_walk, model, source, target, max_hops, noise=None, **options)


def sample(model: PathModel, source, target, max_hops: int, *, seed: int = 0, **options) -> Found:
    """Draw every city from the model's distribution (Gumbel-max trick).

    Checked sampling draws without replacement until a hop is legal.
    """
    generator = torch.Generator(device_of(model)).manual_seed(seed)

    def noise(logits: Tensor) -> Tensor:
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        return logits - torch.log(-torch.log(uniform.clamp_min(1e-20)))

    return _decoded(_walk, model, source, target, max_hops, noise=noise, **options)


def beam(model: PathModel, source, target, max_hops: int, *, width: int = 8, **options) -> Found:
    """Keep the `width` most probable partial paths; return the most probable that arrived.

    beam(width=1) is greedy(). Where no beam arrives, the most probable one is returned.
    """
    if width < 1:
        raise ValueError(f"width is at least 1, not {width}")
    return _decoded(_beam, model, source, target, max_hops, width=width, **options)


def device_of(model: PathModel) -> torch.device:
    """Return where a model is."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: PathModel) -> Iterator[torch.device]:
    """Put a model in evaluation mode without gradients for a while; yield where it is."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield device_of(model)
    finally:
        model.train(was_training)


class Interrupted(KeyboardInterrupt):
    """A search was stopped; `found` holds what the first queries came to, in order."""

    def __init__(self, found: Found, queries: int) -> None:
        kept = f"{len(found.paths):,} of {queries:,} queries are finished: see error.found"
        super().__init__(f"the search was stopped; {kept}")
        self.found = found


def in_parts(
    method: Callable[..., Found],
    source,
    target,
    *,
    part: int = 256,
    name: str = "",
    **options: Any,
) -> Found:
    """Call `method(source, target, **options)` on slices of the queries and join the results.

    Args:
        part: queries a slice. name: stands beside a progress bar; without one there is none.
        options: passed on; a `seed` is raised by the number of the slice's first query.

    Raises:
        Interrupted: on a keyboard interrupt, with the finished queries in `found`.
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    done: list[Found] = []
    with tqdm(total=len(source), desc=name, unit="query", leave=False, disable=not name) as bar:
        for first in range(0, len(source), part):
            slices = (source[first : first + part], target[first : first + part])
            own = options | ({"seed": options["seed"] + first} if "seed" in options else {})
            try:
                done.append(method(*slices, **own))
            except KeyboardInterrupt:
                raise Interrupted(Found.concatenate(done), len(source)) from None
            bar.update(len(slices[0]))
    return Found.concatenate(done)


def _decoded(
    decode: Callable, model: PathModel, source, target, max_hops: int, *, batch: int = 1024,
    checked_by: CityGraph | None = None, loops: int | None = None, **options,
) -> Found:  # fmt: skip
    """Run `decode`, which returns padded ids, lengths, model steps and look-ups, in batches."""
    if max_hops < 1:
        raise ValueError(f"max_hops is at least 1, not {max_hops}")
    began = time.perf_counter()
    with evaluating(model) as device:
        moves = Moves.of(checked_by, device) if checked_by is not None else None

        def slice_of(source: np.ndarray, target: np.ndarray) -> Found:
            ids = (torch.as_tensor(x, device=device) for x in (source, target))
            parts = decode(model, *ids, max_hops, moves=moves, loops=loops, **options)
            out, lengths, steps, lookups = (x.cpu().numpy() for x in parts)
            flops = steps * model.flops_per_step(loops) + (steps > 0) * model.flops_to_start
            return Found(Paths.from_padded(out, lengths), flops, lookups, np.zeros(len(out)), 0.0)

        found = in_parts(slice_of, source, target, part=batch)
    return replace(found, seconds=time.perf_counter() - began)


def _walk(model: PathModel, source, target, max_hops, *, moves, loops, noise):
    """One path a query."""
    out = source.new_full((len(source), max_hops + 1), -1)
    out[:, 0] = city = source
    state, alive = model.start(source, target, loops), source != target
    steps, lookups = torch.zeros_like(source), torch.zeros_like(source, dtype=torch.float64)
    for t in range(1, max_hops + 1):
        if (t - 1) % SYNC_EVERY == 0 and not bool(alive.any()):
            break
        logits, state = model.step(city, state)
        scores = noise(logits.float()) if noise else logits.float()
        steps += alive
        if moves is not None:
            legal = moves.mask(city, scores)
            best, chosen = legal.max(-1)
            lookups += alive * (scores >= best[:, None]).sum(-1)
            alive = alive & (best > NEVER)
        else:
            chosen = scores.argmax(-1)
        city = torch.where(alive, chosen, city)
        out[:, t] = torch.where(alive, chosen, -1)
        alive = alive & (city != target)
    return out, (out >= 0).sum(1), steps, lookups


def sampled_paths(
    model: PathModel, source: Tensor, target: Tensor, max_hops: int
) -> tuple[Tensor, Tensor]:
    """Draw a path for each query [B] by torch's global random numbers, for use in training.

    Returns ids [B, max_hops + 1], -1 after the end, and the numbers of cities [B], on the device.
    """

    def noise(logits: Tensor) -> Tensor:
        return logits - torch.rand_like(logits).clamp_min(1e-20).log().neg().log()

    options = {"moves": None, "loops": None, "noise": noise}
    return _walk(model, source, target, max_hops, **options)[:2]


def _beam(model: PathModel, source, target, max_hops, *, moves, loops, width):
    """`width` paths a query, ranked by log-probability; finished ones wait at the target.

    Log-probabilities only fall, so a path below the best finished one is given up, which changes no
    result; queries without a path in progress leave the batch at the next look.
    """
    beams = _Beams(model, source, target, max_hops, width, loops)
    done = []
    for t in range(1, max_hops + 1):
        if (t - 1) % SYNC_EVERY == 0:
            done.append(beams.leave(model, beams.alive.any(1)))
            if not len(beams.query):
                break
        beams.advance(model, moves, t)
    done.append(beams.leave(model, torch.zeros_like(beams.query, dtype=torch.bool)))
    query, out, steps, lookups = (torch.cat(parts) for parts in zip(*done, strict=True))
    order = query.argsort()
    columns = (out, (out >= 0).sum(1), steps, lookups)
    return tuple(column[order] for column in columns)


class _Beams:
    """The beams of the queries still in progress; `out` [Q, W, hops + 1], `total` [Q, W] log p."""

    def __init__(self, model: PathModel, source, target, max_hops, width, loops) -> None:
        self.query = torch.arange(len(source), device=source.device)
        wide = self.query.repeat_interleave(width)
        self.city, self.goal = source[wide].view(-1, width), target[wide].view(-1, width)
        self.out = source.new_full((len(source), width, max_hops + 1), -1)
        self.out[:, :, 0] = self.city
        self.total = torch.full(self.city.shape, NEVER, device=source.device)
        self.total[:, 0] = 0.0
        self.steps, self.lookups = torch.zeros_like(source), torch.zeros_like(source).double()
        self.state = model.reorder(model.start(source, target, loops), wide)

    @property
    def arrived(self) -> Tensor:
        return self.city == self.goal

    @property
    def alive(self) -> Tensor:
        best = self.total.masked_fill(~self.arrived, NEVER).amax(1, keepdim=True)
        return ~self.arrived & (self.total > best)

    def leave(self, model: PathModel, stay: Tensor) -> tuple[Tensor, ...]:
        """Drop queries that do not `stay` [Q]; return their ids, best paths, steps, look-ups."""
        rank = torch.where(self.arrived, self.total, self.total - 1e6)
        best = self.out[torch.arange(len(rank), device=rank.device), rank.argmax(1)]
        gone = tuple(x[~stay] for x in (self.query, best, self.steps, self.lookups))
        width = self.city.shape[1]
        rows = stay.nonzero() * width + torch.arange(width, device=stay.device)
        self.state = model.reorder(self.state, rows.flatten())
        for name in ("query", "goal", "city", "total", "out", "steps", "lookups"):
            setattr(self, name, getattr(self, name)[stay])
        return gone

    def advance(self, model: PathModel, moves: Moves | None, t: int) -> None:
        """Take one step on all beams at once and keep the most probable of what they lead to."""
        queries, width = self.city.shape
        alive = self.alive
        self.steps += alive.sum(1)
        logits, self.state = model.step(self.city.flatten(), self.state)
        logits = logits.float()
        before = self.total.masked_fill(~alive, NEVER).flatten() - logits.logsumexp(-1)
        best, city = _candidates(logits, width, self.city.flatten(), moves)
        scores = (best + before[:, None]).view(queries, -1)
        waiting = self.total.masked_fill(~self.arrived, NEVER)
        self.total, pick = torch.cat([scores, waiting], 1).topk(width, dim=1)
        if moves is not None:
            bar = self.total[:, -1:].expand(-1, width).flatten()
            tried = (logits + before[:, None] >= bar[:, None]).sum(1).view(queries, width)
            self.lookups += (tried * alive).sum(1)
        self._follow(model, pick, city.view(queries, -1), t)

    def _follow(self, model: PathModel, pick: Tensor, cities: Tensor, t: int) -> None:
        """Move to the picked [Q, W] of the candidates (ids in `cities`), or wait, which is last."""
        queries, width = pick.shape
        rows = torch.arange(queries, device=pick.device)[:, None]
        count = cities.shape[1]
        waits = pick >= count
        parent = torch.where(waits, pick - count, pick // (count // width))
        lost = self.total == NEVER
        stay = torch.arange(width, device=pick.device).expand_as(parent)
        parent = torch.where(lost, stay, parent)
        self.state = model.reorder(self.state, (rows * width + parent).flatten())
        self.goal, self.out = self.goal[rows, parent], self.out[rows, parent]
        moved = cities.gather(1, pick.clamp(max=count - 1))
        self.city = torch.where(waits | lost, self.city[rows, parent], moved)
        self.out[:, :, t] = torch.where(waits | lost, -1, self.city)


def _candidates(
    logits: Tensor, width: int, city: Tensor, moves: Moves | None
) -> tuple[Tensor, Tensor]:
    """The best next cities of each beam, legal ones with `moves`: logits and ids [N, at most W]."""
    if moves is None:
        return logits.topk(min(width, logits.shape[1]))
    table = moves.table[city]
    real = table < logits.shape[1]
    near = logits.gather(1, table.where(real, 0)).masked_fill(~real, NEVER)
    best, at = near.topk(min(width, near.shape[1]))
    return best, table.gather(1, at).clamp(max=logits.shape[1] - 1)
