"""Does a model keep the promises of `PathModel`? One call for the tests of a model of your own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from citypaths.data.batches import Batch
from citypaths.models.base import PathModel


def assert_consistent(
    model: PathModel, batch: Batch, tolerance: float = 1e-5, loops: int | None = None
) -> None:
    """Check that a model decodes as it was trained: steps, reordered states, no look-ahead.

    Args:
        batch: a few paths of different lengths, such as `batch_of(rows)`; at least two.
        tolerance: largest difference between two logits that should be the same.
        loops: recurrent steps to check at, for a model that has any.

    Raises:
        AssertionError: names the broken promise and how far the logits are apart.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = _checked_shape(model, batch, loops)
            _check_look_ahead(model, batch, logits, tolerance, loops)
            _check_steps(model, batch, logits, tolerance, loops)
    finally:
        model.train(was_training)


def _checked_shape(model: PathModel, batch: Batch, loops: int | None) -> Tensor:
    logits = model(batch, loops)
    expected = (*batch.cities.shape, model.cities)
    assert logits.shape == expected, f"forward: logits {tuple(logits.shape)}, not {expected}"
    assert logits[batch.labels >= 0].isfinite().all(), "forward: some logits are not finite"
    return logits


def _check_look_ahead(
    model: PathModel, batch: Batch, logits: Tensor, tolerance: float, loops: int | None
) -> None:
    """Labels and later cities are changed; what came before must not notice."""
    real = batch.labels >= 0
    labels = torch.where(real, (batch.labels + 1) % model.cities, batch.labels)
    for kept in {1, (batch.cities.shape[1] + 1) // 2}:
        cities = batch.cities.clone()
        cities[:, kept:] = torch.where(real[:, kept:], (cities[:, kept:] + 1) % model.cities, 0)
        found = model(replace(batch, cities=cities, labels=labels), loops)[:, :kept]
        what = f"forward looks ahead: the first {kept} steps depend on later cities or labels"
        _assert_close(found, logits[:, :kept], real[:, :kept], tolerance, what)


def _check_steps(
    model: PathModel, batch: Batch, logits: Tensor, tolerance: float, loops: int | None
) -> None:
    """Step through the batch; at each step, also from rows repeated, dropped and permuted."""
    state, count = model.start(batch.source, batch.target, loops), len(batch)
    orders = [torch.arange(count).flip(0), torch.arange(2 * count - 1) % count, torch.tensor([0])]
    for t, city in enumerate(batch.cities.T):
        real = batch.labels[:, t] >= 0
        found, after = model.step(city, state)
        what = f"step {t + 1}: logits differ from the teacher-forced ones"
        _assert_close(found, logits[:, t], real, tolerance, what)
        for index in (order.to(city.device) for order in orders):
            again, _ = model.step(city[index], model.reorder(state, index))
            what = f"reorder before step {t + 1}: rows {index.tolist()} are not those asked for"
            _assert_close(again, found[index], real[index], tolerance, what)
        state = after


def _assert_close(found: Tensor, expected: Tensor, real: Tensor, limit: float, what: str) -> None:
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}"
    apart = (found - expected)[real].abs().max().item() if real.any() else 0.0
    assert apart <= limit, f"{what} (by up to {apart:.2g})"
