"""Decoding: from a model and queries to paths, with the compute each query spent.

Closed-book decoding sees the model alone. With `checked_by=graph` every proposed hop is looked up
(is it an edge?) before it is taken, and look-ups are counted: candidates are tried from the most
probable down until enough legal ones are found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from citypaths.floors import Found
from citypaths.graph import CityGraph
from citypaths.models.base import PathModel
from citypaths.paths import Paths

NEVER = float("-inf")
SYNC_EVERY = 8  # steps between asking the device whether all paths have ended


@dataclass(frozen=True)
class Moves:
    """Legal hops on a device: neighbour ids [V, most], padded with the dump column V."""

    table: Tensor

    @classmethod
    def of(cls, graph: CityGraph, device: torch.device) -> Moves:
        degree = np.diff(graph.indptr)
        table = np.full((len(graph), max(1, int(degree.max(initial=0)))), len(graph))
        table[np.arange(table.shape[1]) < degree[:, None]] = graph.indices
        return cls(torch.as_tensor(table, device=device))

    def mask(self, city: Tensor, scores: Tensor) -> Tensor:
        """Return scores [N, V] with illegal hops from `city` [N] at minus infinity."""
        allowed = scores.new_full((len(city), scores.shape[1] + 1), NEVER)
        return allowed.scatter(1, self.table[city], 0.0)[:, :-1] + scores


def greedy(model: PathModel, source, target, max_hops: int, **options) -> Found:
    """Take the most probable city at every step; options: `checked_by`, `loops`, `batch`."""
    return _in_batches(_rollout, model, source, target, max_hops, noise=None, **options)


def sample(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    **options,
) -> Found:
    """Draw every city from the model's distribution at `temperature` (Gumbel-max trick).

    Checked sampling draws without replacement until a hop is legal.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is above 0, not {temperature}; greedy() is its limit")
    generator = torch.Generator(_device(model)).manual_seed(seed)

    def noise(logits: Tensor) -> Tensor:
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        return logits / temperature - torch.log(-torch.log(uniform.clamp_min(1e-20)))

    return _in_batches(_rollout, model, source, target, max_hops, noise=noise, **options)


def beam(model: PathModel, source, target, max_hops: int, *, width: int = 8, **options) -> Found:
    """Keep the `width` most probable partial paths; return the most probable that arrived.

    beam(width=1) is greedy(). Where no beam arrives, the most probable one is returned.
    """
    if width < 1:
        raise ValueError(f"width is at least 1, not {width}")
    return _in_batches(_beam, model, source, target, max_hops, width=width, **options)


def _device(model: PathModel) -> torch.device:
    return next(model.parameters()).device


def _in_batches(
    decode: Callable, model: PathModel, source, target, max_hops: int, *, batch: int = 1024,
    checked_by: CityGraph | None = None, loops: int | None = None, **options,
) -> Found:  # fmt: skip
    """Run `decode` over slices of the queries and put their paths and costs together."""
    if max_hops < 1:
        raise ValueError(f"max_hops is at least 1, not {max_hops}")
    began, device, was_training = time.perf_counter(), _device(model), model.training
    moves = Moves.of(checked_by, device) if checked_by is not None else None
    source, target = (
        torch.as_tensor(np.asarray(x, np.int64), device=device) for x in (source, target)
    )
    model.eval()
    with torch.inference_mode():
        parts = [
            decode(model, s, t, max_hops, moves=moves, **options)
            for s, t in zip(source.split(batch), target.split(batch), strict=True)
            if len(s)
        ]
    model.train(was_training)
    found = Paths.concatenate([Paths.from_padded(p[0], p[1]) for p in parts])
    steps, lookups = (np.concatenate([np.zeros(0), *(p[i] for p in parts)]) for i in (2, 3))
    flops = steps * model.flops_per_step(loops) + (steps > 0) * model.flops_to_start
    return Found(found, flops, lookups, np.zeros(len(found)), time.perf_counter() - began)


def _rollout(model: PathModel, source, target, max_hops, *, moves, noise):
    """One path a query. Returns padded ids, lengths, model steps and look-ups, each by query."""
    out = source.new_full((len(source), max_hops + 1), -1)
    out[:, 0] = city = source
    state, alive = model.start(source, target), source != target
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
    lengths = (out >= 0).sum(1)
    return tuple(x.cpu().numpy() for x in (out, lengths, steps, lookups))


def _beam(model: PathModel, source, target, max_hops, *, moves, width):
    """`width` paths a query, ranked by log-probability; finished ones wait at the target."""
    queries = len(source)
    wide = torch.arange(queries, device=source.device).repeat_interleave(width)
    goal = target[wide].view(queries, width)
    city = source[wide].view(queries, width)
    state = model.reorder(model.start(source, target), wide)
    out = source.new_full((queries, width, max_hops + 1), -1)
    out[:, :, 0] = city
    total = torch.full((queries, width), NEVER, device=source.device)
    total[:, 0] = 0.0
    steps, lookups = torch.zeros_like(source), torch.zeros_like(source, dtype=torch.float64)
    rows = torch.arange(queries, device=source.device)[:, None]
    for t in range(1, max_hops + 1):
        alive = (city != goal) & (total > NEVER)
        if (t - 1) % SYNC_EVERY == 0 and not bool(alive.any()):
            break
        logits, state = model.step(city.flatten(), state)
        log_p = torch.log_softmax(logits.float(), -1)
        steps += alive.sum(1)
        scores = total[..., None] + log_p.view(queries, width, -1)
        scores = scores.masked_fill(~alive[..., None], NEVER)
        legal = scores
        if moves is not None:
            legal = moves.mask(city.flatten(), scores.flatten(0, 1)).view_as(scores)
        waiting = torch.where((city == goal), total, NEVER)
        pool = torch.cat([legal.flatten(1), waiting], 1)
        total, pick = pool.topk(width, dim=1)
        if moves is not None:
            tried = (scores.flatten(1) >= total[:, -1:]) & (scores.flatten(1) > NEVER)
            lookups += tried.sum(1)
        waits = pick >= scores[0].numel()
        parent = torch.where(waits, pick - scores[0].numel(), pick // scores.shape[2])
        state = model.reorder(state, (rows * width + parent).flatten())
        out = out[rows, parent]
        city = torch.where(waits, city[rows, parent], pick % scores.shape[2])
        out[:, :, t] = torch.where(waits | (total == NEVER), -1, city)
    best = torch.where(city == goal, total, total - 1e6).argmax(1)
    out = out[rows[:, 0], best]
    return tuple(x.cpu().numpy() for x in (out, (out >= 0).sum(1), steps, lookups))
