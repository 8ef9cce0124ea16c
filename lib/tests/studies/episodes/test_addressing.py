"""How slots are addressed and written, against the formulas spelled out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from studies.episodes.dnc import allocation, linked, used
from studies.episodes.ntm import content_weights, sharpen, shift, write

LEFT, STAY, ON = torch.eye(3, dtype=torch.float64)
fractions = st.floats(0, 1, allow_subnormal=False)
rows = st.lists(fractions, min_size=1, max_size=12)


def numbers(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_(grad)


def weights(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    return numbers(*shape, seed=seed).softmax(-1).requires_grad_(grad)


def one_hot(slot: int, slots: int) -> Tensor:
    return torch.eye(slots, dtype=torch.float64)[slot][None]


def cosine(memory: Tensor, keys: Tensor, masks: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(
        (keys * masks)[:, :, None], memory[:, None] * masks[:, :, None], dim=-1
    )


def test_content_weights_are_a_softmax_of_cosines():
    memory, keys, strengths = numbers(3, 7, 5), numbers(3, 2, 5, seed=1), numbers(3, 2, seed=2)
    expected = (cosine(memory, keys, torch.ones_like(keys)) * strengths[..., None]).softmax(-1)
    found = content_weights(memory, keys, strengths)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_masks_hide_parts_of_key_and_slot():
    memory, keys, strengths = numbers(3, 7, 5), numbers(3, 2, 5, seed=1), numbers(3, 2, seed=2)
    masks = numbers(3, 2, 5, seed=3).sigmoid()
    expected = (cosine(memory, keys, masks) * strengths[..., None]).softmax(-1)
    found = content_weights(memory, keys, strengths, masks)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    open_ = torch.ones_like(masks)
    both = content_weights(memory, keys, strengths, open_)
    torch.testing.assert_close(both, content_weights(memory, keys, strengths))


def test_a_great_strength_picks_the_nearest_slot():
    memory = numbers(4, 6, 5)
    keys = memory[torch.arange(4), [5, 0, 2, 2]][:, None] * 0.3
    found = content_weights(memory, keys, torch.full((4, 1), 500.0, dtype=torch.float64))
    assert found.argmax(-1).flatten().tolist() == [5, 0, 2, 2]
    assert found.amax(-1).min() > 0.99


def test_an_empty_memory_is_looked_up_evenly_with_a_gentle_gradient():
    memory = torch.zeros(1, 4, 3, requires_grad=True)
    found = content_weights(memory, torch.ones(1, 1, 3), torch.ones(1, 1))
    torch.testing.assert_close(found, torch.full((1, 1, 4), 0.25))
    found[0, 0, 0].backward()
    assert memory.grad.abs().max() < 1e3


def test_a_shift_moves_round_and_wraps():
    slots = 5
    for at in range(slots):
        stands = one_hot(at, slots)
        for move, goes in ((LEFT, at - 1), (STAY, at), (ON, at + 1)):
            found = shift(stands, move[None])
            torch.testing.assert_close(found, one_hot(goes % slots, slots))
    spread, shifts = weights(2, 3, 6), weights(2, 3, 3, seed=1)
    expected = torch.zeros_like(spread)
    for i in range(6):
        for j in range(6):
            if (i - j) % 6 in (5, 0, 1):
                by = {5: 0, 0: 1, 1: 2}[(i - j) % 6]
                expected[..., i] += spread[..., j] * shifts[..., by]
    torch.testing.assert_close(shift(spread, shifts), expected)


def test_sharpening():
    spread = weights(2, 3, 6)
    one = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(sharpen(spread, one), spread)
    expected = spread**2.5 / (spread**2.5).sum(-1, keepdim=True)
    torch.testing.assert_close(sharpen(spread, 2.5 * one), expected)


@pytest.mark.parametrize("power", [1.0, 30.0, 1e4])
def test_sharpening_zeros_gives_no_nan(power):
    for row in ([0.0, 0, 0, 0], [1.0, 0, 0, 0], [1e-30, 1e-20, 0, 0]):
        spread = torch.tensor([row], requires_grad=True)
        powers = torch.tensor([power], requires_grad=True)
        found = sharpen(spread, powers)
        found[0, 0].backward()
        torch.testing.assert_close(found.sum(), torch.tensor(1.0))
        assert spread.grad.isfinite().all() and powers.grad.isfinite().all()


def test_room_is_allocated_by_the_formula():
    usage = torch.tensor([[0.5, 0.1, 0.9, 0.3]], dtype=torch.float64)
    expected = torch.tensor([[0.015, 0.9, 0.0015, 0.07]], dtype=torch.float64)
    torch.testing.assert_close(allocation(usage), expected, atol=1e-5, rtol=0)
    empty = torch.zeros(1, 4, dtype=torch.float64)
    torch.testing.assert_close(allocation(empty), one_hot(0, 4), atol=1e-5, rtol=0)
    assert allocation(torch.ones(1, 4)).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(rows)
def test_room_allocated_is_one_less_the_product_of_usages(row):
    usage = torch.tensor([row], dtype=torch.float64)
    found = allocation(usage)
    torch.testing.assert_close(found.sum(), 1 - usage.prod(), atol=2e-5, rtol=0)
    assert found.min() >= 0 and found.max() <= 1
    assert usage[0, found.argmax()] <= usage.min() + 2e-5 or found.max() < 1e-4


def test_gradients_of_addressing():
    power = (1 + numbers(2, 3, seed=1).abs()).requires_grad_()
    assert torch.autograd.gradcheck(sharpen, (weights(2, 3, 5, grad=True), power))
    assert torch.autograd.gradcheck(shift, (weights(2, 3, 5, grad=True), weights(2, 3, 3)))
    # Away from ties: there the order changes, and the slope with it.
    assert torch.autograd.gradcheck(allocation, (weights(3, 5, grad=True),), eps=1e-7)


def test_a_head_erases_and_then_adds():
    memory, where = numbers(2, 6, 4), numbers(2, 1, 6, seed=1).sigmoid()
    erase, add = numbers(2, 1, 4, seed=2).sigmoid(), numbers(2, 1, 4, seed=3)
    expected = memory * (1 - where[:, 0, :, None] * erase) + where[:, 0, :, None] * add
    torch.testing.assert_close(write(memory, where, erase, add), expected)


def test_writing_at_a_slot_replaces_it_and_no_other():
    memory, add = numbers(1, 6, 4), numbers(1, 1, 4, seed=1)
    after = write(memory, one_hot(2, 6)[None], torch.ones_like(add), add)
    torch.testing.assert_close(after[0, 2], add[0, 0])
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(after[0, others], memory[0, others])


def test_links_follow_the_order_of_writing():
    slots = 4
    link, last = torch.zeros(1, slots, slots).double(), torch.zeros(1, slots).double()
    for slot in (2, 0, 3):
        writer = one_hot(slot, slots)
        link, last = linked(link, last, writer)
    expected = torch.zeros_like(link)
    expected[0, 0, 2] = expected[0, 3, 0] = 1
    assert torch.equal(link, expected)
    assert torch.equal(last, one_hot(3, slots))


def test_a_link_by_the_formula():
    link, last = weights(2, 5, 5) * 0.3, weights(2, 5, seed=1)
    writer = 0.8 * weights(2, 5, seed=2)
    expected = torch.zeros_like(link)
    for i in range(5):
        for j in range(5):
            if i != j:
                stays = 1 - writer[:, i] - writer[:, j]
                expected[:, i, j] = stays * link[:, i, j] + writer[:, i] * last[:, j]
    torch.testing.assert_close(linked(link, last, writer)[0], expected)
    assert torch.autograd.gradcheck(linked, tuple(t.requires_grad_() for t in (link, last, writer)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), fractions), min_size=1, max_size=8))
def test_links_and_usage_stay_within_bounds(writes):
    slots = 5
    link, last = torch.zeros(1, slots, slots).double(), torch.zeros(1, slots).double()
    usage, writer = torch.zeros(1, slots).double(), torch.zeros(1, slots).double()
    for seed, gate in writes:
        free, read = numbers(1, 2, seed=seed + 1).sigmoid(), weights(1, 2, slots, seed=seed)
        usage, _ = used(usage, writer, free, read)
        writer = gate * (3 * numbers(1, slots, seed=seed)).softmax(-1)
        link, last = linked(link, last, writer)
        assert last.min() >= 0 and last.sum() <= 1 + 1e-9
        assert link.min() >= -1e-12
        assert link.sum(1).max() <= 1 + 1e-9 and link.sum(2).max() <= 1 + 1e-9
        assert link.diagonal(dim1=1, dim2=2).abs().max() == 0
        assert usage.min() >= 0 and usage.max() <= 1


def test_usage_grows_by_writing_and_is_freed_by_reading():
    half, read = torch.tensor([[0.5, 0.0, 1.0]]), torch.tensor([[[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]])
    usage, retention = used(half, torch.tensor([[0.5, 0.25, 0.25]]), torch.zeros(1, 2), read)
    torch.testing.assert_close(retention, torch.ones(1, 3))
    torch.testing.assert_close(usage, torch.tensor([[0.75, 0.25, 1.0]]))
    usage, retention = used(half, torch.zeros(1, 3), torch.tensor([[1.0, 0.5]]), read)
    torch.testing.assert_close(retention, torch.tensor([[0.75, 0.75, 0.0]]))
    torch.testing.assert_close(usage, half * retention)
