"""Differentiable plasticity, and the LSTM without a memory of its own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from studies.episodes import assert_pieces_agree, blanked, numbers_held, swapped
from studies.episodes.lstm import LSTM
from studies.episodes.plastic import Plastic, decayed, oja

RULES = ("decay", "oja", "modulated", "retroactive")
each_rule = pytest.mark.parametrize("rule", RULES)


def made(rule="decay", width=5, hidden=6) -> Plastic:
    torch.manual_seed(1)
    return Plastic(width, hidden, rule).double()


def stream(batch=3, steps=12, width=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, width, dtype=torch.float64, generator=generator)


@each_rule
def test_without_alpha_it_is_a_plain_network(rule):
    model, x = made(rule), stream()
    nn.init.zeros_(model.alpha)
    plain = nn.RNN(5, 6, batch_first=True).double()
    plain.weight_ih_l0.data, plain.weight_hh_l0.data = model.inputs.weight, model.fixed
    plain.bias_ih_l0.data, plain.bias_hh_l0.data = model.inputs.bias, torch.zeros(6).double()
    torch.testing.assert_close(model(x)[0], model.output(plain(x)[0]))


def changed(rule, trace, eligible, after, before, model, j, i):
    """One entry of the traces after a step, from the published equations."""
    product = after[j] * before[i]
    if rule == "decay":
        return (1 - model.rate) * trace[j, i] + model.rate * product, None
    if rule == "oja":
        return trace[j, i] + model.rate * after[j] * (before[i] - after[j] * trace[j, i]), None
    scalar = (model.signal.weight[0] @ after + model.signal.bias[0]).tanh()
    m = model.fan_out.weight[j, 0] * scalar + model.fan_out.bias[j]
    if rule == "modulated":
        return (trace[j, i] + m * product).clamp(-1, 1), None
    waiting = (1 - model.rate) * eligible[j, i] + model.rate * product
    return (trace[j, i] + m * eligible[j, i]).clamp(-1, 1), waiting


@each_rule
def test_one_step_by_hand(rule):
    model, x = made(rule, hidden=3), stream(1, 1)
    h, *traces = (torch.rand_like(part) * 2 - 1 for part in model.start(1))
    found, (after, *later) = model(x, (h, *traces))
    before, trace = h[0], traces[0][0]
    weights = model.fixed + model.alpha * trace
    drive = model.inputs(x[0, 0])
    for j in range(3):
        total = drive[j] + sum(weights[j, i] * before[i] for i in range(3))
        torch.testing.assert_close(after[0, j], total.tanh())
    torch.testing.assert_close(found[:, 0], model.output(after))
    eligible = traces[-1][0]
    for j in range(3):
        for i in range(3):
            entry = changed(rule, trace, eligible, after[0], before, model, j, i)
            for part, expected in zip(later, entry, strict=False):
                torch.testing.assert_close(part[0, j, i], expected)


@given(st.integers(0, 2**31), st.floats(0.01, 1))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_traces_are_bounded(seed, rate):
    """Decay: within the products seen; Oja: within the quotients before / after."""
    torch.manual_seed(seed)
    states = torch.rand(30, 1, 4, dtype=torch.float64) * 2 - 1
    rate = torch.tensor(rate, dtype=torch.float64)
    by_decay = by_oja = torch.zeros(1, 4, 4, dtype=torch.float64)
    product = quotient = 0.0
    for before, after in pairwise(states):
        by_decay, by_oja = decayed(by_decay, after, before, rate), oja(by_oja, after, before, rate)
        both = after[0, :, None] * before[0], before[0] / after[0, :, None]
        product = max(product, float(both[0].abs().max()))
        quotient = torch.maximum(both[1].abs(), torch.as_tensor(quotient))
        assert by_decay.abs().max() <= product + 1e-9
        assert (by_oja[0].abs() <= quotient * (1 + 1e-9)).all()


def test_ojas_trace_settles_where_plain_addition_grows():
    """At constant activity it goes to before / after; over random signs it stays within 1."""
    after, before = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, 0.9]])
    trace, rate = torch.zeros(1, 2, 2), torch.tensor(0.2)
    for _ in range(400):
        trace = oja(trace, after, before, rate)
    torch.testing.assert_close(trace[0], before / after.T, atol=1e-4, rtol=0)
    model = made("oja")
    _, (_, trace) = model(10 * stream(steps=2000))
    assert trace.isfinite().all() and trace.abs().max() < 3


@pytest.mark.parametrize("rule", ["modulated", "retroactive"])
def test_modulated_traces_are_clipped(rule):
    model = made(rule)
    nn.init.constant_(model.fan_out.bias, 50.0)
    trace = model(stream())[1][1]
    assert trace.abs().max() == 1


def test_a_modulation_of_zero_keeps_the_memory():
    model = made("modulated")
    nn.init.zeros_(model.fan_out.weight), nn.init.zeros_(model.fan_out.bias)
    h, trace = (torch.rand_like(part) for part in model.start(3))
    assert torch.equal(model(stream(), (h, trace))[1][1], trace)


@each_rule
def test_pieces_agree(rule):
    model, x = made(rule), stream()
    assert_pieces_agree(model, x, tolerance=1e-12)
    model.rounding = torch.bfloat16
    assert_pieces_agree(model, x, tolerance=1e-12)
    model.rounding, model.tap = None, swapped
    assert_pieces_agree(model, x, tolerance=1e-12)


@each_rule
def test_taps(rule):
    model, x = made(rule), stream()
    h, *traces = model(x)[1]
    plain, other = (h, *traces), (h, *(torch.rand_like(trace) for trace in traces))
    assert not torch.allclose(model(x, plain)[0], model(x, other)[0])
    whole = model(x)[0]
    model.tap = swapped
    assert not torch.allclose(model(x)[0], whole)
    model.tap = blanked
    assert torch.equal(model(x, plain)[0], model(x, other)[0])


@each_rule
def test_rounding_is_of_the_trace(rule):
    model, x = made(rule), stream()
    plain = model(x)[0]
    model.rounding = torch.bfloat16
    found, (_, *traces) = model(x)
    assert all(torch.equal(trace, trace.bfloat16().double()) for trace in traces)
    assert found.isfinite().all() and not torch.equal(found, plain)


@each_rule
def test_what_is_held_is_constant_and_left_alone(rule):
    model, x = made(rule), stream(steps=50)
    state = model.start(3)
    assert numbers_held(state) == 3 * (6 + 36 * (2 if rule == "retroactive" else 1))
    state = model(x, state)[1]
    copies = [part.clone() for part in state]
    assert numbers_held(model(x, state)[1]) == numbers_held(state)
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))


@each_rule
def test_every_parameter_learns(rule):
    model = made(rule)
    model(stream())[0].square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    one_step = made(rule)
    one_step(stream(steps=1))[0].square().mean().backward()
    assert not one_step.alpha.grad.any(), "nothing has been stored yet"


def test_the_counts_of_plastic():
    assert made().parameters_count == 5 * 6 + 6 + 2 * 36 + 6 * 5 + 5 + 1
    assert made("modulated").parameters_count == made().parameters_count - 1 + 7 + 12
    assert float(Plastic(4, rate=0.3).rate.detach()) == pytest.approx(0.3)
    shared = 4 * 5 * 6 + 2 * 36 + 3 * 36
    expected = (shared + 4 * 36, shared + 5 * 36, shared + 4 * 36 + 30, shared + 8 * 36 + 30)
    assert tuple(made(rule).flops_per_step() for rule in RULES) == expected


@pytest.mark.parametrize("bad", [{"width": 0}, {"hidden": 0}, {"rate": 0.0}, {"rule": "hebb"}])
def test_plastic_refuses(bad):
    with pytest.raises(ValueError, match="at least 1"):
        Plastic(**({"width": 4} | bad))


# The LSTM


def lstm(layers=1) -> LSTM:
    torch.manual_seed(1)
    return LSTM(5, 6, layers).double()


@pytest.mark.parametrize("layers", [1, 2])
def test_the_lstm_in_pieces(layers):
    model, x = lstm(layers), stream()
    assert_pieces_agree(model, x, tolerance=1e-12)
    plain = model(x)[0]
    torch.testing.assert_close(plain, model.output(model.lstm(x)[0]))
    model.rounding = torch.bfloat16
    assert_pieces_agree(model, x, tolerance=1e-12)
    found, state = model(x)
    assert all(torch.equal(part, part.bfloat16().double()) for part in state)
    assert not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, atol=0.05, rtol=0)


def test_a_tap_does_nothing_to_the_lstm():
    model, x = lstm(), stream()
    plain = model(x)[0]
    model.tap = blanked
    assert torch.equal(model(x)[0], plain)


def test_the_lstm_remembers_at_first():
    model = lstm(2)
    for layer in range(2):
        biases = [getattr(model.lstm, f"bias_{kind}_l{layer}")[6:12] for kind in ("ih", "hh")]
        assert torch.equal(sum(biases), torch.ones(6).double())


def test_the_counts_of_the_lstm():
    model, x = lstm(2), stream()
    state = model(x)[1]
    copies = [part.clone() for part in state]
    assert numbers_held(model(x, state)[1]) == numbers_held(model.start(3)) == 3 * 2 * 2 * 6
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))
    model(x)[0].square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.flops_per_step() == 48 * 11 + 48 * 12 + 12 * 12 + 60
    with pytest.raises(ValueError, match="at least 1"):
        LSTM(4, layers=0)
