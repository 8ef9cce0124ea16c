"""Looped models and their halting: published check values, and what loops must and must not do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from citypaths.data.batches import Batch
from citypaths.map.graph import build_graph
from citypaths.models import build
from citypaths.models.check import assert_consistent
from citypaths.models.transformer import CONTEXT
from studies.recurrence.looped import (
    SLACK,
    act_weights,
    geometric_log_prior,
    halting_log_probability,
    kl_divergence,
)

PLAIN = {"width": 16, "heads": 2}


@pytest.fixture(scope="module")
def graph(place):
    points = [(35 + 0.1 * i, -80 + 0.1 * j) for i in range(5) for j in range(8)]
    return build_graph(place(np.array(points)), 20)


@pytest.fixture(scope="module")
def batch() -> Batch:
    path = torch.randint(40, (5, 8), generator=torch.Generator().manual_seed(2))
    return Batch(path[:, 0], path[:, -1], path[:, :-1], path[:, 1:])


def made(name, graph, **options):
    torch.manual_seed(0)
    return build(name, graph, **options).eval()


# ACT


def spend(chances: torch.Tensor) -> tuple[torch.Tensor, int, float]:
    """Weights, loops spent and remainder of one position with these halting probabilities."""
    total, weights = torch.zeros(()), []
    for loop, chance in enumerate(chances):
        weight, goes_on = act_weights(chance, total, last=loop == len(chances) - 1)
        weights.append(weight)
        total = torch.where(goes_on, total + weight, 1.0)
    weights = torch.stack(weights)
    spent = int(weights.count_nonzero())
    return weights, spent, float(weights[spent - 1])


@pytest.mark.parametrize(
    "chances, expected, remainder",
    [
        ((0.3, 0.4, 0.5, 0.5), (0.3, 0.4, 0.3, 0.0), 0.3),  # Graves: N = 3, ponder cost 3.3
        ((0.05,) * 4, (0.05, 0.05, 0.05, 0.85), 0.85),  # stopped by the most loops
        ((0.995, 0.5), (1.0, 0.0), 1.0),  # within the slack of 1 at once
        ((1 - SLACK, 0.5), (1.0, 0.0), 1.0),
    ],
)
def test_act_weights_of_known_probabilities(chances, expected, remainder):
    weights, spent, rest = spend(torch.tensor(chances))
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert spent == sum(w > 0 for w in expected) and rest == pytest.approx(remainder)


@given(hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0.001, 1)))
def test_act_weights_add_up_to_one(chances):
    assert float(spend(torch.from_numpy(chances))[0].sum()) == pytest.approx(1, abs=1e-12)


def test_act_freezes_a_city_that_has_halted(graph, batch):
    """More loops than anyone spends change nothing: not the states, nor what others attend to."""
    model = made("act", graph, loops=40, **PLAIN)
    spent = model.loops_spent(batch)
    assert 1 < spent.max() < 20 and spent.shape == batch.cities.shape
    with torch.no_grad():
        torch.testing.assert_close(model(batch, 20), model(batch, 40))
        capped = model.loops_spent(batch, 2)
        assert (capped == spent.clamp(max=2)).all()


def test_act_pays_for_loops_and_remainders(graph, batch):
    """The cost alone sets two losses apart; its gradient goes through the remainder."""
    cheap, dear = (made("act", graph, loops=6, **PLAIN).train() for _ in range(2))
    cheap.ponder_cost, dear.ponder_cost = 0.0, 1.0
    extra = (dear.loss(batch) - cheap.loss(batch)).item()
    _, spent, remainder, _ = dear.halted(dear.embed(batch), None, 6)
    assert extra == pytest.approx((spent + remainder).mean().item(), rel=1e-4)
    grads = []
    for model in (cheap, dear):
        model.zero_grad()
        model.loss(batch).backward()
        grads.append(model.halt.bias.grad.clone())
    assert (grads[1] < grads[0]).all(), "a larger bias halts earlier and costs less"


# PonderNet


def test_pondernets_halting_distribution():
    log_p = geometric_log_prior(0.2, 20)
    p = log_p.exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-6)
    mean = float((p * torch.arange(1, 21)).sum())
    assert mean == pytest.approx((1 - 0.8**20) / 0.2, abs=1e-4) == pytest.approx(4.9424, abs=1e-4)
    assert abs(float(kl_divergence(log_p, log_p))) < 1e-7
    extreme = halting_log_probability(torch.tensor([400.0, -400.0, 400.0]))
    assert extreme.isfinite().all() and float(extreme.exp().sum()) == pytest.approx(1)


@settings(max_examples=60)
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(-30, 30)), st.floats(0.05, 0.9)
)
def test_divergence_from_the_prior_is_never_negative(logits, rate):
    log_p = halting_log_probability(torch.from_numpy(logits))
    prior = geometric_log_prior(rate, len(logits)).double()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(kl_divergence(log_p, prior)) >= -1e-6


def test_pondernet_weighs_the_losses_of_its_loops(graph, batch):
    """The objective against one written out loop by loop, with probabilities and no logarithms."""
    model = made("ponder", graph, loops=3, **PLAIN).train()
    model.beta = 0.5
    nn.init.normal_(model.halt.weight)
    inputs = model.embed(batch)
    state = torch.zeros_like(inputs)
    rates, losses = [], []
    for _ in range(3):
        state, _ = model.loop(state, inputs, None)
        rates.append(torch.sigmoid(model.halt(state)[..., 0]))
        logits = model.head(model.norm(state))
        losses.append(F.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none"))
    p = [rates[0], (1 - rates[0]) * rates[1], (1 - rates[0]) * (1 - rates[1])]
    prior = [0.3, 0.7 * 0.3, 0.7 * 0.7]
    expected = sum((a * b).mean() for a, b in zip(p, losses, strict=True))
    divergence = sum((a * (a / q).log()).mean() for a, q in zip(p, prior, strict=True))
    torch.testing.assert_close(model.loss(batch), expected + 0.5 * divergence)


def test_pondernet_halts_where_half_would_have(graph, batch):
    model = made("ponder", graph, loops=8, **PLAIN)
    assert (model.loops_spent(batch) == 2).all()  # 1 - 0.7^2 is the first above one half
    nn.init.constant_(model.halt.bias, float(torch.tensor(0.2).logit()))
    assert (model.loops_spent(batch) == 4).all()  # 1 - 0.8^4 is the first above one half
    assert (model.loops_spent(batch, 3) == 3).all()


# Loops


@pytest.mark.parametrize("loops", [1, 3])
def test_loops_are_layers_with_the_same_weights(loops, graph, batch):
    looped = made("top_recurrent", graph, loops=loops, **PLAIN).double()
    stack = made("transformer", graph, width=16, heads=2, layers=loops).double()
    shared = {k: v for k, v in looped.state_dict().items() if not k.startswith("block")}
    for i in range(loops):
        shared |= {f"blocks.{i}.{k}": v for k, v in looped.block.state_dict().items()}
    stack.load_state_dict(shared)
    torch.testing.assert_close(looped(batch), stack(batch), atol=1e-12, rtol=0)


def test_one_loop_of_added_input_is_one_layer(graph, batch):
    looped = made("looped", graph, loops=1, **PLAIN)
    looped.settle = nn.Identity()
    layer = made("transformer", graph, width=16, heads=2, layers=1)
    layer.load_state_dict(
        {k.replace("block.", "blocks.0."): v for k, v in looped.state_dict().items()}
    )
    torch.testing.assert_close(looped(batch), layer(batch))


def test_injection_keeps_the_input_in_many_loops(graph, batch):
    """Every loop's state depends on it, and many loops keep the state's size."""
    model, order = made("looped", graph, **PLAIN), torch.tensor([1, 0, 2, 3, 4])
    with torch.no_grad():
        a, b = (model.states(x, 60) for x in (batch, batch.take(order)))
        assert (a[0] - b[0]).norm(dim=-1).min() > 0.1 and a.norm(dim=-1).max() < 100


def test_loops_are_drawn_from_the_range_while_training(graph):
    model = made("looped", graph, sampled=(2, 5), loops=3, **PLAIN)
    assert model.take_loops(None) == 3 and model.train().take_loops(7) == 7
    torch.manual_seed(3)
    drawn = [model.take_loops(None) for _ in range(200)]
    assert set(drawn) == {2, 3, 4, 5}
    torch.manual_seed(3)
    assert drawn == [model.take_loops(None) for _ in range(200)]
    assert len({model.flops_per_step() for _ in range(20)}) == 1, "costs are not drawn"


def test_gradients_are_cut_to_the_last_loops(graph, batch):
    """As many as there are is no cut; fewer equal a state handed over without its past."""

    def gradients(**options):
        model = made("looped", graph, loops=4, **PLAIN, **options)
        model.loss(batch).backward()
        return {n: p.grad for n, p in model.named_parameters()}

    full, all_four, cut = gradients(), gradients(backprop=4), gradients(backprop=2)
    for name in full:
        torch.testing.assert_close(all_four[name], full[name])
    assert not torch.allclose(cut["block.up.weight"], full["block.up.weight"], rtol=1e-3)

    model = made("looped", graph, loops=4, **PLAIN)
    inputs = model.embed(batch)
    state = torch.zeros_like(inputs)
    for loop in range(4):
        state = model.loop(state.detach() if loop == 2 else state, inputs, None)[0]
    logits = model.head(model.norm(state))
    F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(cut[name], parameter.grad)


def test_noise_is_fresh_in_training_and_repeats_in_decoding(graph, batch):
    model = made("looped", graph, noise=1.0, loops=1, **PLAIN)
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


def test_the_steadiest_of_several_starts_is_taken(graph, batch):
    model = made("looped", graph, noise=1.0, loops=3, **PLAIN)
    one, inputs = model.core_flops(3), model.embed(batch)
    model.starts = 4
    with torch.no_grad():
        states, moved = [], []
        for start in range(4):
            state = model.table[start, : inputs.shape[1]].expand_as(inputs)
            for _ in range(3):
                before, (state, _) = state, model.loop(state, inputs, None)
            states.append(state)
            moved.append((state - before).norm(dim=-1) / state.norm(dim=-1))
        best = torch.stack(moved).argmin(0)
        assert len(best.unique()) > 1
        expected = torch.stack(states).gather(0, best[None, ..., None].expand(1, -1, -1, 16))[0]
        torch.testing.assert_close(model.states(batch), model.norm(expected))
    assert model.core_flops(3) == 4 * one


def test_several_starts_decode_as_they_score(graph, batch):
    model = made("looped", graph, noise=0.5, loops=3, **PLAIN)
    model.starts = 3
    assert_consistent(model, batch)


def test_top_recurrence_learns_from_every_loop(graph, batch):
    model = made("top_recurrent", graph, loops=3, **PLAIN)
    each = [model.loss(batch, loops).detach() for loops in (1, 2, 3)]
    assert len({round(float(x), 6) for x in each}) == 3
    torch.testing.assert_close(model.train().loss(batch), torch.stack(each).mean())


def test_inner_steps_of_an_rnn_repeat_each_city(graph, batch):
    model = made("rnn", graph, width=16, loops=3)
    inputs = model.inputs(batch.cities, model.inputs.goal(batch.target)[:, None])
    hidden, _ = model.rnn(inputs.repeat_interleave(3, 1))
    torch.testing.assert_close(model(batch), model.head(hidden[:, 2::3]))
    assert not torch.allclose(model(batch, 1), model(batch), atol=1e-3)


@pytest.mark.parametrize("name", ["rnn", "looped", "top_recurrent", "act", "ponder"])
def test_no_loops_at_all_are_refused(name, graph, batch):
    with pytest.raises(ValueError, match="at least one loop, not 0"):
        made(name, graph, width=16)(batch, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sampled": (3, 2)}, "fewest, most"),
        ({"heads": 3}, "do not divide"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message, graph):
    with pytest.raises(ValueError, match=message):
        build("looped", graph, **({"width": 16, "heads": 2} | options))


@pytest.mark.parametrize(
    "name, options",
    [
        ("transformer", {"layers": 2}),
        ("looped", {"loops": 3}),
        ("looped", {"loops": 6, "backprop": 2}),
        ("looped", {"sampled": (5, 5), "noise": 0.1}),
        ("top_recurrent", {"loops": 3}),
        ("act", {"loops": 4}),
        ("ponder", {"loops": 4}),
    ],
)
def test_training_costs_what_torch_counts(name, options, graph):
    """Backward included; what is stated leaves out the first layers' unneeded input gradients."""
    model = made(name, graph, width=64, heads=2, **options).train()
    path = torch.randint(40, (4, CONTEXT + 1))
    batch = Batch(path[:, 0], path[:, -1], path[:, :-1], path[:, 1:])
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        model.loss(batch).backward()
    stated = model.training_flops_per_step * 4 * CONTEXT
    assert counter.get_total_flops() == pytest.approx(stated, rel=0.03)


def test_mean_cost_of_sampled_loops(graph):
    """Loops without gradients cost a third; the mean is over what is drawn."""
    plain = {"width": 16, "heads": 2, "backprop": 2}
    sampled = build("looped", graph, sampled=(1, 4), **plain).training_flops_per_step
    fixed = [build("looped", graph, loops=n, **plain).training_flops_per_step for n in range(1, 5)]
    assert sampled == pytest.approx(np.mean(fixed))
    step = fixed[1] - fixed[0]
    assert fixed[3] - fixed[2] == pytest.approx(step / 3)


def test_longer_loops_leave_shorter_ones_untouched(graph, batch):
    """The dial is an argument: turning it changes no weight and no later call."""
    model = made("looped", graph, width=16, heads=2)
    before = model(batch)
    model(batch, 9), model(replace(batch, target=batch.source), 2)
    assert torch.equal(model(batch), before)
