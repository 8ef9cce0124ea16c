"""Attention by relative position, against sums written out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.episodes.attention import Layer, Transformer, relative_shift
from studies.episodes.transformer_xl import Past

WIDTH = 8


def stream(steps: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64)


@given(t=st.integers(1, 7), before=st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_the_relative_shift_is_a_gather_by_distance(t, before):
    n = t + before
    scores = torch.randn(2, t, n)
    shifted = relative_shift(scores)
    for i in range(t):
        for j in range(before + i + 1):
            distance = before + i - j
            assert torch.equal(shifted[:, i, j], scores[:, i, n - 1 - distance])


@given(t=st.integers(1, 6), before=st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_only_later_keys_are_hidden(t, before):
    n, inf = before + t, float("-inf")
    mask = Transformer(2, heads=1).positions(t, n).mask
    mask = torch.zeros(1, n) if mask is None else mask
    for i in range(t):
        assert mask[i].tolist() == [inf if j > before + i else 0.0 for j in range(n)]


def test_sinusoids_are_those_of_the_distances():
    table = Transformer(4).double().positions(1, 5).table
    for row, distance in enumerate([4.0, 3.0, 2.0, 1.0, 0.0]):
        angle = torch.tensor([distance, distance / 100.0])
        expected = torch.cat((angle.sin(), angle.cos())).double()
        torch.testing.assert_close(table[row], expected, atol=1e-6, rtol=0)


def test_a_layer_attends_as_the_equation_says():
    torch.manual_seed(0)
    heads, t, n, size = 2, 3, 5, WIDTH // 2
    layer = Layer(WIDTH, 12, heads, 1).double()
    q, kv = stream(t, 2, 2), torch.cat((stream(n, 2, 3), stream(n, 2, 4)), -1)
    u, v = stream(1, 2, 5)[:, 0]
    positions = Transformer(WIDTH).double().positions(t, n)._replace(u=u, v=v)
    got = layer.attend(q, kv, positions)
    for b, i, head in torch.cartesian_prod(torch.arange(2), torch.arange(t), torch.arange(heads)):
        some = slice(head * size, (head + 1) * size)
        seen = n - t + i + 1
        scores = []
        for j in range(seen):
            key, place = kv[b, j, :WIDTH][some], layer.place(positions.table[n - seen + j])[some]
            own = q[b, i, some]
            scores.append(((own + u[some]) @ key + (own + v[some]) @ place) / size**0.5)
        shares = torch.stack(scores).softmax(0)
        expected = shares @ kv[b, :seen, WIDTH:][:, some]
        torch.testing.assert_close(got[b, i, some], expected)


@given(size=st.integers(0, 7), pieces=st.lists(st.integers(0, 9), max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_buffer_is_first_in_first_out(size, pieces):
    past, everything, count = Past(0, (torch.full((1, size), -1),)), [-1] * size, 0
    for piece in pieces:
        past = past.after([torch.arange(count, count + piece)[None]])
        everything += range(count, count + piece)
        count += piece
        assert past.rows[0][0].tolist() == everything[len(everything) - size :]
        assert past.filled()[0][0].tolist() == list(range(max(0, count - size), count))
