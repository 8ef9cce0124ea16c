"""The feedback transformer: its scan against a plain loop, its memory, its recurrence over time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import build_graph
from citypaths.models import build
from citypaths.models.check import assert_consistent
from studies.recurrence import FeedbackTransformer

SMALL = {"width": 16, "layers": 3, "heads": 4}


@pytest.fixture(scope="module")
def graph(place):
    """Forty cities on a jagged grid, eastward."""
    random = np.random.default_rng(0)
    points = [(35 + 0.1 * i, -80 + 0.1 * j) for i in range(5) for j in range(8)]
    return build_graph(place(np.array(points) + random.uniform(-0.03, 0.03, (40, 2))), 20)


def drawn(steps: int, paths: int = 5) -> Batch:
    """Paths of `steps` cities at random, the last one shorter."""
    draw = torch.Generator().manual_seed(steps)
    path = torch.randint(40, (paths, 1 + steps), generator=draw)
    labels = path[:, 1:].clone()
    labels[-1, steps // 2 :] = -100
    return Batch(path[:, 0], path[:, -1], path[:, :-1], labels)


def made(graph, **options) -> FeedbackTransformer:
    """A model in float64 whose every parameter, normalisation and null too, is a random number."""
    torch.manual_seed(0)
    model = build("feedback", graph, **SMALL | options).double()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name or name in ("mix", "null"):
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.5)
    return model


def plain(model: FeedbackTransformer, inputs: Tensor) -> Tensor:
    """The definition, a step, a layer and a memory at a time."""
    heads, slope, tops = model.heads, model.log_slope.exp(), []
    null = model.null.expand(len(inputs), -1, -1, -1)
    keys, values = [null[:, 0]], [null[:, 1]]
    for t in range(inputs.shape[1]):
        x = inputs[:, t]
        states = [x]
        for block in model.blocks:
            query = block.query(block.norm_attention(x)).unflatten(-1, (heads, -1))
            scores = [(query * key).sum(-1) / query.shape[-1] ** 0.5 for key in keys]
            scores = [scores[0]] + [s - slope * (t - j) for j, s in enumerate(scores[1:])]
            chances = torch.softmax(torch.stack(scores), 0)
            found = sum(c[..., None] * v for c, v in zip(chances, values, strict=True))
            x = x + block.out(found.flatten(1))
            x = x + block.down(torch.relu(block.up(block.norm_feed(x))))
            states.append(x)
        memory = sum(w * s for w, s in zip(model.mix.softmax(0), states, strict=True))
        key, value = model.to_memory(model.norm_memory(memory)).chunk(2, -1)
        keys.append(key.unflatten(-1, (heads, -1)))
        values.append(value.unflatten(-1, (heads, -1)))
        tops.append(x)
    return model.norm(torch.stack(tops, 1))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), found, strict=True))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# The scan


@pytest.mark.parametrize("options", [{}, {"layers": 1, "heads": 1}])
@pytest.mark.parametrize("steps", [1, 2, 8, 9, 19])
def test_scan_is_the_definition(graph, options, steps):
    model, batch = made(graph, **options), drawn(steps)
    states = model.encode(model.embed(batch), 1), plain(model, model.embed(batch))
    logits = [model.head(each) for each in states]
    close(*logits)
    draw = torch.randn(logits[0].shape, dtype=torch.float64)
    if steps > 1:  # one step attends to the null alone: the definition's queries have no gradient
        found, expected = (gradients(model, (each * draw).sum()) for each in logits)
        for name, gradient in expected.items():
            close(found[name], gradient, 1e-11 * max(1.0, float(gradient.abs().max())))


def test_gradient_of_the_inputs_by_differences(graph):
    model = made(graph, width=4, layers=2, heads=2)
    inputs = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model.encode(x, 1), inputs)


def test_loops_read_a_city_again(graph):
    model, inputs = made(graph), torch.randn(3, 5, 16, dtype=torch.float64)
    twice = inputs[:, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]]
    close(model.encode(inputs, 2), plain(model, twice)[:, 1::2])
    assert (model.encode(inputs, 2) - model.encode(inputs, 1)).abs().max() > 1e-3


def test_two_forwards_before_a_backward(graph):
    model, batches = made(graph), (drawn(6), drawn(9))
    apart = [gradients(model, model.loss(batch)) for batch in batches]
    both = gradients(model, sum(model.loss(batch) for batch in batches))
    for name, gradient in both.items():
        close(gradient, apart[0][name] + apart[1][name])


def test_scan_without_gradients_and_in_other_types(graph):
    model, batch = made(graph), drawn(7)
    logits = model(batch)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert torch.equal(model(batch), logits)
    model.float()
    single = model(batch)
    close(single.double(), logits, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rough, states = model(batch), model.states(batch)
        model.loss(batch).backward()
    assert states.dtype == torch.float32
    close(rough.float(), single, 0.3)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_scan_has_no_second_derivative(graph):
    model = made(graph)
    (grad,) = torch.autograd.grad(model.loss(drawn(4)), model.mix, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# Memory


@pytest.mark.parametrize("options", [{"heads": 1}, {"loops": 3}])
def test_decodes_as_it_trains(graph, options):
    assert_consistent(made(graph, **options), drawn(11), 1e-10)


def test_the_order_of_memories_matters(graph):
    model, batch = made(graph), drawn(9)
    state = model.start(batch.source, batch.target)
    for city in batch.cities.T[:-1]:
        _, state = model.step(city, state)
    order = torch.tensor([0, 3, 1, 2, 5, 4, 8, 7, 6])
    shuffled = state | {"memory": tuple(rows[:, :, order] for rows in state["memory"])}
    logits = [model.step(batch.cities[:, -1], each)[0] for each in (state, shuffled)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def only_layer(model: FeedbackTransformer, layer: int) -> None:
    """Make a step's memory one layer's states."""
    with torch.no_grad():
        model.mix.fill_(-1e9)[layer] = 0.0


def test_the_top_of_a_step_reaches_the_lowest_layer_of_the_next(graph):
    model, inputs = made(graph), torch.randn(2, 2, 16, dtype=torch.float64)
    only_layer(model, -1)
    first_layer = []
    model.blocks[0].register_forward_hook(lambda _, __, out: first_layer.append(out))

    def lowest() -> Tensor:
        memory = None
        for x in inputs.unbind(1):
            _, memory = model.encode_step(x, memory, 1)
        return first_layer[-1]

    before = lowest()
    with torch.no_grad():
        model.blocks[-1].down.bias += torch.randn(16, dtype=torch.float64)
    assert (lowest() - before).abs().max() > 1e-3
    only_layer(model, 0)
    alone = lowest()
    with torch.no_grad():
        model.blocks[-1].down.bias += torch.randn(16, dtype=torch.float64)
    close(lowest(), alone)


# Sweeps


def test_sweeps_make_one_more_step_exact_each(graph):
    model, batch = made(graph), drawn(8)
    exact = model(batch)
    for count in (1, 2, 3, 8):
        swept = model.sweeps(batch, count)
        close(swept[:, :count], exact[:, :count])
        if count < 3:
            assert (swept - exact)[:, count].abs().max() > 1e-6
    looped = made(graph, loops=2)
    close(looped.sweeps(batch, 6)[:, :3], looped(batch)[:, :3])
    with pytest.raises(ValueError, match="sweep"):
        model.sweeps(batch, 0)


def test_sweeps_measure_how_far_back_recurrence_reaches(graph):
    """With two loops a city, 12 cities are 24 steps; the last takes 24 sweeps."""
    batch = drawn(12)
    looped = made(graph, loops=2)
    close(looped.sweeps(batch, 24), looped(batch))
    assert (looped.sweeps(batch, 3) - looped(batch)).abs().max() > 1e-9
    model = made(graph)
    only_layer(model, 0)  # nothing of a layer is remembered: one sweep is enough
    close(model.sweeps(batch, 1), model(batch))


def test_wrong_settings(graph):
    for wrong in ({"heads": 3}, {"loops": 0}):
        with pytest.raises(ValueError):
            build("feedback", graph, **SMALL | wrong)


def test_slopes_are_spread(graph):
    slopes = build("feedback", graph, width=16, heads=4).log_slope.detach().exp()
    assert slopes[0] == pytest.approx(2.0) and slopes[-1] == pytest.approx(0.1)
    assert (slopes.log().diff(n=2).abs() < 1e-5).all()


# What the recurrence is for


class Parity(nn.Module):
    """Say after every bit whether the ones so far are odd in number."""

    def __init__(self, core) -> None:
        super().__init__()
        self.core, self.bits, self.out = core, nn.Embedding(2, core.width), nn.Linear(core.width, 2)

    def forward(self, bits: Tensor) -> Tensor:
        return self.out(self.core.encode(self.bits(bits), 1))


def trained_on_parity(core, steps: int, most: int = 32) -> Callable[[int], float]:
    """Train on lengths that grow to `most`; return what measures the accuracy at a length."""
    model, draw = Parity(core), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(model.parameters(), 2e-3)

    def example(length: int) -> tuple[Tensor, Tensor]:
        bits = torch.randint(2, (32, length), generator=draw)
        return bits, bits.cumsum(1) % 2

    for step in range(steps):
        bits, odd = example(min(most, 4 + step * 28 // (steps // 2)))
        loss = F.cross_entropy(model(bits).flatten(0, 1), odd.flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adam.step()

    @torch.no_grad()
    def accuracy(length: int) -> float:
        bits, odd = example(length)
        return float((model(bits).argmax(-1) == odd).float().mean())

    return accuracy


def test_learns_parity_where_a_transformer_does_not(graph):
    settings = {"width": 32, "layers": 2, "heads": 4}
    accuracy = {}
    for name in ("feedback", "transformer"):
        torch.manual_seed(0)
        accuracy[name] = trained_on_parity(build(name, graph, **settings), 150)
    assert accuracy["feedback"](32) > 0.99
    assert accuracy["feedback"](64) > 0.95
    assert accuracy["transformer"](32) < 0.7
