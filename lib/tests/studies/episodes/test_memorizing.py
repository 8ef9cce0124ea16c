"""The memorizing transformer: what it recalls, and that it recalls the right rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.episodes.transformer_xl import Memorizing, TransformerXL, recall

WIDTH = 8


def made(**dials) -> Memorizing:
    torch.manual_seed(0)
    sizes = {"layers": 2, "heads": 2, "segment": 4, "memory": 10, "k": 3, **dials}
    return Memorizing(WIDTH, hidden=12, **sizes).double()


def stream(steps: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64)


def rows(n: int, seed: int) -> torch.Tensor:
    """Return [2, 2, n, 4]."""
    return stream(n, 2, seed).unflatten(-1, (2, 4)).transpose(1, 2)


@given(n=st.integers(1, 9), k=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_recall_is_a_softmax_over_the_k_largest(n, k, seed):
    q, keys, values = rows(3, seed), rows(n, seed + 1), rows(n, seed + 2)
    got = recall(q, keys, values, k)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, (2, 2, 3))):
        scores = keys[b, h] @ q[b, h, i]
        near = scores.argsort(descending=True)[:k]
        expected = scores[near].softmax(0) @ values[b, h][near]
        torch.testing.assert_close(got[b, h, i], expected)


@pytest.mark.parametrize("memory", [4, 10, 13])
def test_a_stored_key_returns_its_own_value_also_far_beyond_capacity(memory):
    model = made(memory=memory, layers=1)  # whose inputs are the stream
    x, state = stream(160), None
    heads = model.layers[-1].by_head
    for end in range(4, 161, 4):
        _, state = model(x[:, end - 4 : end], state)
        first = max(0, end - memory)
        expected = model.layers[-1].keys_values(x[:, first:end])
        assert state.memory.held == end - first
        torch.testing.assert_close(state.memory.filled()[0], expected)
        keys, values = map(heads, state.memory.filled()[0].chunk(2, -1))
        torch.testing.assert_close(recall(100 * keys, keys, values, 1), values)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_recalling_everything_is_dense_attention(share):
    model, x = made(layers=1, memory=8, k=100), stream(12)
    layer = model.layers[-1]
    with torch.no_grad():
        layer.gate.copy_(torch.tensor(share).double().logit().clamp(-50, 50))
        output, (old, now) = model(x)[0][:, 8:], (x[:, :8], x[:, 8:])
        local = layer.attend(layer.queries(now), layer.keys_values(now), model.positions(4, 4))
        q = F.normalize(layer.by_head(layer.queries(now)), dim=-1)
        q = q * layer.sharpness.exp()[:, None, None]
        keys, values = map(layer.by_head, layer.keys_values(old).chunk(2, -1))
        dense = ((q @ keys.mT).softmax(-1) @ values).transpose(1, 2).flatten(2)
        expected = model.norm(layer.finish(now, (1 - share) * local + share * dense))
    torch.testing.assert_close(output, expected)


def test_keys_have_unit_length_and_the_memory_no_gradient():
    model, x = made(), stream(24).requires_grad_()
    (rows,) = model(x)[1].memory.rows
    keys = model.layers[-1].by_head(rows.chunk(2, -1)[0])
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(2, 2, 10).double())
    assert not rows.requires_grad
    assert model.layers[-1].key_value.weight.requires_grad


def test_no_position_is_told_of_the_memory():
    model, x = made(), stream(4)
    _, state = model(stream(16))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    turned = state.memory._replace(rows=(state.memory.rows[0][:, order],))
    torch.testing.assert_close(model(x, state)[0], model(x, state._replace(memory=turned))[0])


def test_a_closed_gate_is_attention_within_segments():
    model, x = made(layers=3), stream(24)
    with torch.no_grad():
        model.layers[-1].gate.fill_(-60.0)
    closed = model(x)[0]
    model.memory = 0
    torch.testing.assert_close(model(x)[0], closed)
    torch.testing.assert_close(closed[:, 8:12], model(x[:, 8:12])[0])


def test_only_the_last_layer_recalls():
    model = made(layers=3)
    assert [hasattr(layer, "gate") for layer in model.layers] == [False, False, True]
    plain = TransformerXL(WIDTH, hidden=12, layers=3, heads=2)
    assert model.parameters_count == plain.parameters_count + 2 * 2


def test_more_may_be_recalled_or_held_between_streams():
    model, x = made(), stream(40)
    first = model(x)[0]
    model.k = 5
    assert (model(x)[0] - first).abs().max() > 1e-4
    model.k, model.memory = 3, 30
    assert model(x)[1].memory.held == 30
    torch.testing.assert_close(model(x)[0][:, :12], first[:, :12])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"memory": -1}])
def test_wrong_dials_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        made(**wrong)
