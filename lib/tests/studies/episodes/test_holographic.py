"""Holographic binding and the laws of its retrieval."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.episodes.holographic import (
    accuracy_law,
    bind,
    cosine_law,
    involution,
    noise_law,
    random_keys,
    retrieval,
    unbind,
    unitary,
)

KINDS = ("gaussian", "unitary", "fhrr")
kinds, widths = st.sampled_from(KINDS), st.integers(1, 40)
seeds = st.integers(0, 2**31)
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
    near(unbind(a, b), circulant.T @ b)


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
    key, value, _ = drawn("gaussian", width, seed)
    key = unitary(key)
    near(unbind(key, bind(key, value)), value)
    near(bind(key, value).norm(), value.norm())
    near(key.norm(), torch.ones((), dtype=key.dtype))
    near(unitary(key), key)
    phasor, content, _ = drawn("fhrr", width, seed)
    near(phasor.abs(), torch.ones(width, dtype=torch.float64))
    near(unbind(phasor, bind(phasor, content)), content)


def test_what_is_zero_becomes_a_unitary_key_too():
    zero = torch.zeros(6, dtype=torch.float64)
    near(unitary(zero), torch.eye(6, dtype=torch.float64)[0])
    near(unitary(zero + 0j), torch.ones(6, dtype=torch.complex128))


def test_the_keys_distributions():
    for kind in ("gaussian", "unitary"):
        keys = drawn(kind, 64, 0, 2000)
        assert float(keys.var()) == pytest.approx(1 / 64, rel=0.02)
    assert float(drawn("fhrr", 64, 0, 2000).mean().abs()) < 0.01


def test_retrieval_obeys_its_laws():
    table = retrieval(widths=(256,), pairs=(1, 8, 32), trials=40)
    assert list(table["pairs"]) == 3 * [1, 8, 32] and set(table["keys"]) == set(KINDS)
    assert table["noise"].to_numpy() == pytest.approx(table["noise_law"], rel=0.05, abs=1e-6)
    assert table["cosine"].to_numpy() == pytest.approx(table["cosine_law"], abs=0.02)
    assert table["accuracy"].to_numpy() == pytest.approx(table["accuracy_law"], abs=0.05)
    kind = table[table["pairs"] == 32].set_index("keys")
    assert kind.loc["fhrr", "accuracy"] > kind.loc["unitary", "accuracy"] + 0.2


def test_the_same_seed_measures_the_same():
    first, again = (retrieval((32,), (4,), trials=2, seed=3) for _ in range(2))
    assert first.equals(again)


def test_the_laws_check_values():
    assert [noise_law(kind, 8) for kind in KINDS] == [8, 7, 7]
    assert cosine_law("gaussian", 8) == pytest.approx(1 / 3)
    assert cosine_law("fhrr", 8) == pytest.approx(8**-0.5)
    assert accuracy_law("unitary", 1024, 4, 999) == pytest.approx(1, abs=1e-6)
    assert accuracy_law("fhrr", 4, 10**6, 99) == pytest.approx(0.01, rel=0.1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="real vector and a complex"):
        bind(torch.ones(4), torch.ones(4) + 0j)
    with pytest.raises(ValueError, match="keys are gaussian"):
        random_keys("other", (2, 3))
