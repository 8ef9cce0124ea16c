"""Holographic binding, and the laws of its noise."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.memory.holographic import (
    bind,
    capacity,
    draw_capacity,
    involution,
    noise_law,
    random_keys,
)

KINDS = ("gaussian", "unitary", "fhrr")
kinds, widths, seeds = st.sampled_from(KINDS), st.integers(1, 40), st.integers(0, 2**31)
few = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(kind, width, seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return random_keys(kind, (count, width), generator, torch.float64)


def near(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@given(widths, seeds)
@few
def test_binding_is_the_circulant_matrix(width, seed):
    a, b, _ = drawn("gaussian", width, seed)
    circulant = torch.stack([a.roll(i) for i in range(width)], 1)
    near(bind(a, b), circulant @ b)
    near(bind(involution(a), b), circulant.T @ b)


@given(kinds, widths, seeds)
@few
def test_the_algebra_of_binding(kind, width, seed):
    a, b, c = drawn(kind, width, seed)
    one = torch.ones_like(a) if a.is_complex() else torch.eye(width, dtype=a.dtype)[0]
    near(bind(a, b), bind(b, a))
    near(bind(bind(a, b), c), bind(a, bind(b, c)))
    near(bind(a, b + c), bind(a, b) + bind(a, c))
    near(bind(a, one), a)
    near(involution(involution(a)), a)
    near(involution(bind(a, b)), bind(involution(a), involution(b)))


@given(widths, seeds)
@few
def test_unitary_keys_are_inverted_exactly(width, seed):
    for kind in ("unitary", "fhrr"):
        key, value = drawn(kind, width, seed)[0], drawn("gaussian", width, seed + 1)[0]
        value = value + 0j if kind == "fhrr" else value
        near(bind(involution(key), bind(key, value)), value)
        near(bind(key, value).norm(), value.norm())
    near(drawn("unitary", width, seed)[0].norm(), torch.ones((), dtype=torch.float64))
    near(drawn("fhrr", width, seed)[0].abs(), torch.ones(width, dtype=torch.float64))


def test_the_keys_distributions():
    for kind in ("gaussian", "unitary"):
        keys = drawn(kind, 64, 0, 2000)
        assert float(keys.var()) == pytest.approx(1 / 64, rel=0.02)
    assert float(drawn("fhrr", 64, 0, 2000).mean().abs()) < 0.01


def test_the_noise_obeys_its_laws():
    table = capacity(trials=60)
    assert set(table["keys"]) == set(KINDS) and len(table) == 3 * 6 + 5
    alone = table[table["pairs"] == 1]
    assert alone["noise"].to_numpy() == pytest.approx(alone["law"], abs=0.3)
    rest = table[table["pairs"] > 1]
    assert rest["noise"].to_numpy() == pytest.approx(rest["law"], rel=0.06)
    assert capacity(2, seed=3).equals(capacity(2, seed=3))


def test_the_laws_check_values():
    assert [noise_law(kind, 8) for kind in KINDS] == [8, 7, 7]
    laws = [noise_law("fhrr", 20, copies, 128) for copies in (1, 4, 32)]
    assert laws == pytest.approx([19, 4.83, 0.738], rel=0.03)


def test_dots_are_drawn_over_lines():
    pairs, copies = draw_capacity(capacity(2)).axes
    assert len(pairs.lines) == 2 * 3 and len(copies.lines) == 2
    assert pairs.lines[0].get_ydata().tolist() == [1, 2, 4, 8, 16, 32]
    assert copies.lines[1].get_xdata().tolist() == [1, 2, 4, 8, 16, 32]
    plt.close("all")
