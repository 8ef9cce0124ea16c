"""Search by chance: stochastic beams of a model, and random walks without one."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from citypaths.decoding.decode import NEVER, device_of
from citypaths.map.graph import CityGraph, unit_hash
from citypaths.map.paths import PAD, Found, Paths
from citypaths.models.base import PathModel


@torch.inference_mode()
def stochastic_beam(
    model: PathModel, source, target, max_hops: int, *, width: int = 8, seed: int = 0
) -> Found:
    """Draw `width` distinct paths without replacement; keep the most probable that arrived.

    As many paths as a beam search keeps, at its cost, but they spread as samples do (Kool et al.
    2019): a path's score is its log-probability perturbed by noise, and the highest are kept.
    """
    if width < 1:
        raise ValueError(f"width is at least 1, not {width}")
    began, device = time.perf_counter(), device_of(model)
    random = torch.Generator(device).manual_seed(seed)
    source, target = (
        torch.as_tensor(np.asarray(x, np.int64), device=device) for x in (source, target)
    )
    queries, rows = len(source), torch.arange(len(source), device=source.device)
    wide = rows.repeat_interleave(width)
    state = model.reorder(model.start(source, target), wide)
    city, goal = source[wide].view(queries, width), target[wide].view(queries, width)
    out = source.new_full((queries, width, max_hops + 1), -1)
    out[:, :, 0] = city
    log_p = torch.full((queries, width), NEVER, device=source.device)
    log_p[:, 0] = 0.0
    score, steps = log_p.clone(), torch.zeros_like(source)
    for t in range(1, max_hops + 1):
        alive = (city != goal) & (score > NEVER)
        if not bool(alive.any()):
            break
        steps += alive.sum(1)
        logits, state = model.step(city.flatten(), state)
        child = logits.float().log_softmax(-1).view(queries, width, -1) + log_p[..., None]
        child = child.masked_fill(~alive[..., None], NEVER)
        perturbed = _conditional_gumbels(child, score, random)
        waiting = score.masked_fill(alive, NEVER)
        score, pick = torch.cat([perturbed.flatten(1), waiting], 1).topk(width, dim=1)
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
    rank = log_p.double() - 1e6 * (city != goal)
    kept, steps = (x.cpu().numpy() for x in (out[rows, rank.argmax(1)], steps))
    flops = steps * float(model.flops_per_step()) + (steps > 0) * model.flops_to_start
    paths, nothing = Paths.from_padded(kept, (kept >= 0).sum(1)), np.zeros(queries)
    return Found(paths, flops, nothing, nothing, time.perf_counter() - began)


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


def blind(
    graph: CityGraph, source, target, max_hops: int, *, walks: int = 64, seed: int = 0
) -> Found:
    """Return the shortest of `walks` random walks that arrive, else the first walk.

    The floor of all searches: a walk draws uniformly among the out-edges of a city until the
    target, a dead end or `max_hops`. Every city it leaves is an expansion, and each of its
    out-edges a look-up. A query's walks depend on its source, its target and `seed` alone.

    Raises:
        ValueError: no walks, no hops, or not as many sources as targets.
    """
    if walks < 1 or max_hops < 1:
        raise ValueError(f"walks and max_hops are at least 1, not {walks} and {max_hops}")
    began = time.perf_counter()
    source, target = (np.asarray(x, np.int64)[:, None] for x in (source, target))
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    degree, city = np.diff(graph.indptr), np.repeat(source, walks, 1)
    out = np.full((*city.shape, max_hops + 1), PAD)
    out[..., 0], mm, spent = city, np.zeros(city.shape), np.zeros((2, len(city)))
    going = (city != target) & (degree[city] > 0)
    for hop in range(max_hops):
        if not going.any():
            break
        chance = unit_hash(seed, source, target, np.arange(walks) * max_hops + hop)
        edge = np.where(going, graph.indptr[city] + (chance * degree[city]).astype(np.int64), 0)
        spent += np.stack([(degree[city] * going).sum(1), going.sum(1)])
        city, mm = np.where(going, graph.indices[edge], city), mm + graph.mm[edge] * going
        out[..., hop + 1] = np.where(going, city, PAD)
        going &= (city != target) & (degree[city] > 0)
    best = np.where(city == target, mm, np.inf).argmin(1)
    rows = out[np.arange(len(out)), best]
    paths, seconds = Paths.from_padded(rows, (rows >= 0).sum(1)), time.perf_counter() - began
    return Found(paths, np.zeros(len(rows)), *spent, seconds)
