"""The Associative LSTM: its keys in many orders, its cell and the interface."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from toys import assert_a_step_leaves_its_state_alone

from studies.episodes.associative import AssociativeLSTM, Permuted, bounded
from studies.memory.holographic import random_keys
from studies.memory.streams import assert_pieces_agree, numbers_held


def swapped(reads: torch.Tensor) -> torch.Tensor:
    """Each stream's reads from the stream before it."""
    return reads.roll(1, 0)


def made(copies=3, width=5, hidden=4) -> AssociativeLSTM:
    torch.manual_seed(1)
    return AssociativeLSTM(width, hidden, copies).double()


def stream(batch=3, steps=12, width=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, width, dtype=torch.float64, generator=generator)


def test_one_pair_comes_back_exactly_from_copies():
    generator = torch.Generator().manual_seed(0)
    keys, values = random_keys("fhrr", (2, 1, 16), generator)
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])
    key = Permuted.apply(keys[0], orders)
    torch.testing.assert_close((key.conj() * (key * values[0])).mean(-2), values[0])


@given(st.integers(0, 2**31), st.floats(0, 1e6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_moduli_are_at_most_one_and_phases_stay(seed, scale):
    torch.manual_seed(seed)
    z = scale * torch.randn(20, dtype=torch.complex128)
    found = bounded(z)
    assert (found.abs() <= 1 + 1e-12).all()
    torch.testing.assert_close(found * z.abs(), z * found.abs())
    inside = z.abs() <= 1
    assert torch.equal(found[inside], z[inside])


def test_bounded_has_a_gradient_at_zero():
    z = torch.zeros(3, dtype=torch.complex64, requires_grad=True)
    bounded(z).abs().square().sum().backward()
    assert z.grad.isfinite().all()


def test_permutations_move_both_parts_alike():
    torch.manual_seed(0)
    orders = torch.stack([torch.randperm(9) for _ in range(4)])
    z = torch.randn(2, 9, dtype=torch.complex128, requires_grad=True)
    moved = Permuted.apply(z, orders)
    for copy, order in enumerate(orders):
        assert torch.equal(moved[:, copy].real, z.real[:, order])
        assert torch.equal(moved[:, copy].imag, z.imag[:, order])
    assert gradcheck(lambda z: Permuted.apply(z, orders), z)
    model = made(copies=5)
    assert (model.permutations.sort(-1).values == torch.arange(4)).all()
    assert "permutations" in model.state_dict()


def test_one_step_by_hand():
    """The published equations, with halves [re; im] and loops instead of complex numbers."""
    model, n = made(copies=2, hidden=3), 3  # made() seeds what is drawn here
    h, cell = torch.randn(1, 2 * n).double(), torch.randn(1, 2, n, 2).double()
    x = stream(1, 1)
    found, (after, stored) = model(x, (h, cell))
    pre = (model.inputs(x[:, 0]) + model.recurrent(h))[0]
    real, imaginary, gates = pre.split(3 * n)
    keep, add, show = gates.sigmoid().split(n)
    norm = (real**2 + imaginary**2).sqrt().clamp_min(1)
    real, imaginary = real / norm, imaginary / norm
    total = torch.zeros(n, 2).double()
    for copy, order in enumerate(model.permutations.tolist()):
        for j, k in enumerate(order):
            (wr, wi), (rr, ri) = ((real[p + k], imaginary[p + k]) for p in (0, n))
            ur, ui = add[j] * real[2 * n + j], add[j] * imaginary[2 * n + j]
            cr = keep[j] * cell[0, copy, j, 0] + wr * ur - wi * ui
            ci = keep[j] * cell[0, copy, j, 1] + wr * ui + wi * ur
            torch.testing.assert_close(stored[0, copy, j], torch.stack((cr, ci)))
            total[j] += torch.stack((rr * cr - ri * ci, rr * ci + ri * cr)) / 2
    total = show[:, None] * total / total.norm(dim=1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(after[0], total.T.flatten())
    torch.testing.assert_close(found[:, 0], model.output(after))


def test_the_count_of_parameters():
    model, f, width = AssociativeLSTM(10, 16), 32, 10
    assert model.recurrent.weight.numel() == 4.5 * f * f
    assert model.parameters_count == int(4.5 * f * (f + width + 1)) + (f + 1) * width
    assert AssociativeLSTM(10, 16, 8).parameters_count == model.parameters_count


@pytest.mark.parametrize("copies", [1, 3])
def test_pieces_agree(copies):
    model = made(copies)
    assert_pieces_agree(model, stream(), tolerance=1e-12)
    model.rounding = torch.bfloat16
    assert_pieces_agree(model, stream(), tolerance=1e-12)
    model.rounding, model.tap = None, swapped
    assert_pieces_agree(model, stream(), tolerance=1e-12)


def test_a_blanked_memory_tells_nothing():
    model, x = made(), stream()
    h, cell = model(x)[1]
    other = (h, torch.randn_like(cell))
    assert not torch.allclose(model(x, (h, cell))[0], model(x, other)[0])
    model.tap = torch.zeros_like
    torch.testing.assert_close(model(x, (h, cell))[0], model(x, other)[0], atol=1e-12, rtol=0)
    assert not torch.allclose(model(x)[0], model(-x)[0]), "the input of a step still counts"


def test_a_tap_that_changes_nothing_changes_nothing():
    model, x = made(), stream()
    plain = model(x)[0]
    model.tap = lambda values: values
    torch.testing.assert_close(model(x)[0], plain)
    model.tap = swapped
    assert not torch.allclose(model(x)[0], plain)
    same = x[:1].expand(3, -1, -1)
    tapped = model(same)[0]
    model.tap = None
    torch.testing.assert_close(tapped, model(same)[0])


def test_rounding_is_of_the_memory():
    model, x = made(), stream()
    plain = model(x)[0]
    model.rounding = torch.bfloat16
    found, (_, cell) = model(x)
    assert torch.equal(cell, cell.bfloat16().double())
    assert found.isfinite().all() and not torch.equal(found, plain)
    torch.testing.assert_close(found, plain, atol=0.1, rtol=0)


def test_what_is_held_is_constant_and_left_alone():
    model, x = made(), stream(steps=60)
    state = model.start(3)
    assert numbers_held(state) == 3 * (8 + 3 * 4 * 2)
    assert_a_step_leaves_its_state_alone(model, x, state)


def test_every_parameter_learns():
    model = made()
    model(stream())[0].square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_operations_by_hand():
    assert AssociativeLSTM(1, 1, 1).flops_per_step() == 2 * 3 * 9 + 2 * 2 + 18 + 50
    assert AssociativeLSTM(8, 16, 4).flops_per_step() == 12_800 - 768 + 18 * 64 + 50 * 16


@pytest.mark.parametrize("bad", [{"width": 0}, {"hidden": 0}, {"copies": 0}])
def test_sizes_below_one_are_refused(bad):
    with pytest.raises(ValueError, match="at least 1"):
        AssociativeLSTM(**({"width": 4} | bad))
