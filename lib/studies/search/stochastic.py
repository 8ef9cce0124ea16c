"""Stochastic beam search: distinct paths drawn without replacement (Kool et al. 2019)."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from citypaths.decoding.decode import NEVER, Moves, device_of
from citypaths.decoding.scorers import Scorer
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel


def stochastic_beam(
    model: PathModel,
    source,
    target,
    max_hops: int,
    *,
    width: int = 8,
    scorer: Scorer | None = None,
    checked_by: CityGraph | None = None,
    batch: int = 256,
    loops: int | None = None,
    seed: int = 0,
) -> Found:
    """Draw `width` distinct paths without replacement; keep the best that arrived.

    The best has the least energy by `scorer`, or else the highest probability. As many paths as a
    beam search keeps, at its cost, but they spread as samples do. Checked, a hop is looked up when
    it would be among the `width` kept.
    """
    if width < 1:
        raise ValueError(f"width is at least 1, not {width}")
    began, device, was_training = time.perf_counter(), device_of(model), model.training
    random = torch.Generator(device).manual_seed(seed)
    moves = Moves.of(checked_by, device) if checked_by is not None else None
    ids = [torch.as_tensor(np.asarray(x, np.int64), device=device) for x in (source, target)]
    model.eval()
    with torch.inference_mode():
        parts = [
            _drawn(model, s, t, max_hops, width, moves, loops, random)
            for s, t in zip(*(x.split(batch) for x in ids), strict=True)
        ]
    model.train(was_training)
    out, log_p, steps, lookups = (np.concatenate(column) for column in zip(*parts, strict=True))
    flops = steps * model.flops_per_step(loops) + (steps > 0) * model.flops_to_start
    pick, extra = _best(out, log_p, np.asarray(source), np.asarray(target), scorer)
    rows = out[np.arange(len(out)), pick]
    found = Paths.from_padded(rows, (rows >= 0).sum(1))
    spent = (flops + extra[0], lookups + extra[1], np.zeros(len(found)))
    return Found(found, *spent, time.perf_counter() - began)


def _drawn(
    model: PathModel, source: Tensor, target: Tensor, max_hops: int, width: int,
    moves: Moves | None, loops: int | None, random: torch.Generator,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Paths [Q, W, hops + 1], their log-probabilities [Q, W] (-inf: none), steps and look-ups."""
    queries, rows = len(source), torch.arange(len(source), device=source.device)
    wide = rows.repeat_interleave(width)
    state = model.reorder(model.start(source, target, loops), wide)
    city, goal = source[wide].view(queries, width), target[wide].view(queries, width)
    out = source.new_full((queries, width, max_hops + 1), -1)
    out[:, :, 0] = city
    log_p = torch.full((queries, width), NEVER, device=source.device)
    log_p[:, 0] = 0.0
    score, steps = log_p.clone(), torch.zeros_like(source)
    lookups = torch.zeros_like(source)
    for t in range(1, max_hops + 1):
        alive = (city != goal) & (score > NEVER)
        if not bool(alive.any()):
            break
        steps += alive.sum(1)
        logits, state = model.step(city.flatten(), state)
        child = logits.float().log_softmax(-1).view(queries, width, -1) + log_p[..., None]
        child = child.masked_fill(~alive[..., None], NEVER)
        perturbed = _conditional_gumbels(child, score, random)
        legal = perturbed
        if moves is not None:
            legal = moves.mask(city.flatten(), perturbed.flatten(0, 1)).view(perturbed.shape)
        waiting = score.masked_fill(alive, NEVER)
        score, pick = torch.cat([legal.flatten(1), waiting], 1).topk(width, dim=1)
        if moves is not None:
            lookups += ((perturbed >= score[:, -1:, None]) & (perturbed > NEVER)).sum((1, 2))
        cities = child.shape[2]
        stays = pick >= width * cities
        parent = torch.where(stays, pick - width * cities, pick // cities)
        log_p = torch.cat([child.flatten(1), log_p], 1).gather(1, pick)
        state = model.reorder(state, (rows[:, None] * width + parent).flatten())
        out, moved = out[rows[:, None], parent], pick % cities
        stays = stays | (score == NEVER)
        city = torch.where(stays, city.gather(1, parent), moved)
        out[:, :, t] = torch.where(stays, -1, city)
    log_p = log_p.masked_fill(score == NEVER, NEVER)
    return tuple(x.cpu().numpy() for x in (out, log_p, steps, lookups.double()))


def _conditional_gumbels(log_p: Tensor, most: Tensor, random: torch.Generator) -> Tensor:
    """Perturb log-probabilities [..., V] by Gumbel noise, given that their maximum is `most` [...].

    Kool et al. 2019, appendix B.3: shifted in log space, so that nothing cancels.
    """
    waits = torch.empty_like(log_p).exponential_(generator=random)
    drawn = log_p - waits.log()
    shift = drawn.amax(-1, keepdim=True)
    gap = most[..., None] - drawn + torch.log1p(-torch.exp(drawn - shift))
    shifted = most[..., None] - gap.clamp_min(0) - torch.log1p(torch.exp(-gap.abs()))
    return torch.where(log_p > NEVER, shifted, NEVER)


def _best(
    out: np.ndarray, log_p: np.ndarray, source: np.ndarray, target: np.ndarray,
    scorer: Scorer | None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """The beam of each query to keep, and the FLOPs and look-ups of scoring its beams."""
    queries = len(out)
    last = (out >= 0).sum(2) - 1
    arrived = np.take_along_axis(out, last[..., None], 2)[..., 0] == target[:, None]
    real = log_p > NEVER
    energy = np.where(real, -log_p, np.inf)
    extra = (np.zeros(queries), np.zeros(queries))
    if scorer is not None:
        rows = out[real]
        paths, query = Paths.from_padded(rows, (rows >= 0).sum(1)), np.nonzero(real)[0]
        energy[real] = scorer.score(source[query], target[query], paths)
        costs = (scorer.flops(paths), scorer.lookups(paths))
        extra = tuple(np.bincount(query, cost, minlength=queries) for cost in costs)
    return np.lexsort((energy, ~arrived), axis=1)[:, 0], extra
