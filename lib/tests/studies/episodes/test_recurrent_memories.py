"""Differentiable plasticity, and the LSTM without a memory of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import assert_a_step_leaves_its_state_alone

from studies.episodes.associative import Plastic
from studies.memory.streams import LSTM, assert_pieces_agree, numbers_held


def swapped(reads: torch.Tensor) -> torch.Tensor:
    """Each stream's reads from the stream before it."""
    return reads.roll(1, 0)


def made(width=5, hidden=6) -> Plastic:
    torch.manual_seed(1)
    return Plastic(width, hidden).double()


def stream(batch=3, steps=12, width=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, width, dtype=torch.float64, generator=generator)


def test_without_alpha_it_is_a_plain_network():
    model, x = made(), stream()
    nn.init.zeros_(model.alpha)
    plain = nn.RNN(5, 6, batch_first=True).double()
    plain.weight_ih_l0.data, plain.weight_hh_l0.data = model.inputs.weight, model.fixed
    plain.bias_ih_l0.data, plain.bias_hh_l0.data = model.inputs.bias, torch.zeros(6).double()
    torch.testing.assert_close(model(x)[0], model.output(plain(x)[0]))


def test_one_step_by_hand():
    model, x = made(hidden=3), stream(1, 1)
    h, traces = (torch.rand_like(part) * 2 - 1 for part in model.start(1))
    found, (after, later) = model(x, (h, traces))
    before, trace, rate = h[0], traces[0], model.rate_logit.sigmoid()
    weights = model.fixed + model.alpha * trace
    drive = model.inputs(x[0, 0])
    for j in range(3):
        total = drive[j] + sum(weights[j, i] * before[i] for i in range(3))
        torch.testing.assert_close(after[0, j], total.tanh())
        for i in range(3):
            expected = (1 - rate) * trace[j, i] + rate * after[0, j] * before[i]
            torch.testing.assert_close(later[0, j, i], expected)
    torch.testing.assert_close(found[:, 0], model.output(after))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.99])
def test_traces_are_bounded_by_the_products_seen(rate):
    model = made()
    nn.init.constant_(model.rate_logit, torch.tensor(rate).logit())
    (_, trace), state, largest = model.start(3), None, 0.0
    for x in (10 * stream(steps=300)).split(1, 1):
        before = torch.zeros(3, 6).double() if state is None else state[0]
        _, state = model(x, state)
        products = state[0][:, :, None] * before[:, None]
        largest = max(largest, float(products.detach().abs().max()))
        assert state[1].abs().max() <= largest + 1e-9 <= 1 + 1e-9
    assert state[1].abs().max() > trace.abs().max()


def test_pieces_agree():
    model, x = made(), stream()
    assert_pieces_agree(model, x, tolerance=1e-12)
    model.rounding = torch.bfloat16
    assert_pieces_agree(model, x, tolerance=1e-12)
    model.rounding, model.tap = None, swapped
    assert_pieces_agree(model, x, tolerance=1e-12)


def test_taps():
    model, x = made(), stream()
    h, trace = model(x)[1]
    plain, other = (h, trace), (h, torch.rand_like(trace))
    assert not torch.allclose(model(x, plain)[0], model(x, other)[0])
    whole = model(x)[0]
    model.tap = swapped
    assert not torch.allclose(model(x)[0], whole)
    model.tap = torch.zeros_like
    assert torch.equal(model(x, plain)[0], model(x, other)[0])


def test_rounding_is_of_the_trace():
    model, x = made(), stream()
    plain = model(x)[0]
    model.rounding = torch.bfloat16
    found, (_, trace) = model(x)
    assert torch.equal(trace, trace.bfloat16().double())
    assert found.isfinite().all() and not torch.equal(found, plain)


def test_what_is_held_is_constant_and_left_alone():
    model, x = made(), stream(steps=50)
    state = model.start(3)
    assert numbers_held(state) == 3 * (6 + 36)
    assert_a_step_leaves_its_state_alone(model, x, state)


def test_every_parameter_learns():
    model = made()
    model(stream())[0].square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name
    one_step = made()
    one_step(stream(steps=1))[0].square().mean().backward()
    assert not one_step.alpha.grad.any(), "nothing has been stored yet"


def test_the_counts_of_plastic():
    assert made().parameters_count == 5 * 6 + 6 + 2 * 36 + 6 * 5 + 5 + 1
    assert float(Plastic(4).rate_logit.detach().sigmoid()) == pytest.approx(0.1)
    assert made().flops_per_step() == 4 * 5 * 6 + 2 * 36 + 3 * 36 + 4 * 36


@pytest.mark.parametrize("kind", [Plastic, LSTM])
@pytest.mark.parametrize("bad", [{"width": 0}, {"hidden": 0}])
def test_sizes_below_one_are_refused(kind, bad):
    with pytest.raises(ValueError, match="at least 1"):
        kind(**({"width": 4} | bad))


# The LSTM


def lstm() -> LSTM:
    torch.manual_seed(1)
    return LSTM(5, 6).double()


def test_the_lstm_in_pieces():
    model, x = lstm(), stream()
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
    model.tap = torch.zeros_like
    assert torch.equal(model(x)[0], plain)


def test_the_lstm_remembers_at_first():
    model = lstm()
    biases = [getattr(model.lstm, f"bias_{kind}_l0")[6:12] for kind in ("ih", "hh")]
    assert torch.equal(sum(biases), torch.ones(6).double())


def test_the_counts_of_the_lstm():
    model, x = lstm(), stream()
    state = model(x)[1]
    copies = [part.clone() for part in state]
    assert numbers_held(model(x, state)[1]) == numbers_held(model.start(3)) == 3 * 2 * 6
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))
    model(x)[0].square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert model.flops_per_step() == 48 * 11 + 12 * 6 + 60
