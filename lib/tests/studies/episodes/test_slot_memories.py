"""NTM and DNC as memories: pieces, taps, rounding, gradients, and programs set by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from studies.episodes.dnc import DNC
from studies.episodes.ntm import NTM, ControlledMemory
from studies.memory.streams import assert_pieces_agree, numbers_held


def swapped(reads: torch.Tensor) -> torch.Tensor:
    """Each stream's reads from the stream before it."""
    return reads.roll(1, 0)


WIDTH = 6
SIZES = {"width": WIDTH, "hidden": 10, "slots": 7, "word": 5}
MAKERS = {
    "ntm": lambda: NTM(**SIZES),
    "dnc": lambda: DNC(**SIZES),
    "dnc, 1 head": lambda: DNC(**SIZES, heads=1),
    "dnc, improved": lambda: DNC(**SIZES, improved=True),
}
ON, OFF = 40.0, -40.0


@pytest.fixture(params=MAKERS)
def memory(request) -> ControlledMemory:
    torch.manual_seed(1)
    made = MAKERS[request.param]().double()
    with torch.no_grad():
        made.interface.weight *= 4  # so that the memory matters before any training
    return made


def stream(steps: int, batch: int = 3, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, WIDTH, generator=draw, dtype=torch.float64)


def test_pieces_agree(memory):
    assert_pieces_agree(memory, stream(14), tolerance=1e-10)
    memory.slots = 11
    assert_pieces_agree(memory, stream(9), tolerance=1e-10)
    assert memory.start(2).held.memory.shape == (2, 11, 5)


def test_the_state_given_is_left_as_it_was(memory):
    _, state = memory(stream(5))
    before = tree_map(torch.clone, state)
    once, _ = memory(stream(4, seed=1), state)
    again, _ = memory(stream(4, seed=1), state)
    assert torch.equal(once, again)
    assert all(map(torch.equal, tree_leaves(before), tree_leaves(state)))


def test_as_much_is_held_after_a_long_stream(memory):
    with torch.no_grad():
        states = [memory(stream(steps))[1] for steps in (1, 60)]
    held = [numbers_held(state) for state in (memory.start(3), *states)]
    assert held[0] == held[1] == held[2]


def test_weights_stay_weights(memory):
    _, state = memory(3 * stream(40))
    held = state.held
    rows = (
        held.weights if isinstance(memory, NTM) else torch.cat((held.read, held.write[:, None]), 1)
    )
    assert rows.min() >= 0 and rows.sum(-1).max() <= 1 + 1e-9
    if isinstance(memory, NTM):
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))


def test_nothing_read_hides_what_is_held(memory):
    _, state = memory(stream(6))
    held = state.held._replace(memory=state.held.memory.flip(0))
    other = state._replace(held=held, reads=state.reads.flip(0))
    x = stream(5, seed=1)
    assert (memory(x, state)[0] - memory(x, other)[0]).abs().max() > 1e-4
    memory.tap = torch.zeros_like
    assert torch.equal(memory(x, state)[0], memory(x, other)[0])


def test_swapped_reads_are_those_of_another_stream(memory):
    x = stream(6)
    plain, _ = memory(x)
    memory.tap = swapped
    other, _ = memory(x)
    assert (other - plain).abs().amax((1, 2)).min() > 1e-6
    alike = x[:1].expand(3, -1, -1)
    torch.testing.assert_close(memory(alike)[0][0], plain[0])
    assert_pieces_agree(memory, x, tolerance=1e-10)


def test_rounding(memory):
    memory.float()
    x = stream(12).float()
    plain, _ = memory(x)
    memory.rounding = torch.bfloat16
    found, state = memory(x)
    assert found.isfinite().all() and not torch.equal(found, plain)
    assert (found - plain).abs().max() < 0.2
    for leaf in tree_leaves(state.held):
        assert torch.equal(leaf, leaf.bfloat16().float())
    assert_pieces_agree(memory, x)


def test_every_parameter_learns_and_none_of_the_interface_when_blanked(memory):
    memory(stream(12))[0].square().sum().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad.isfinite().all(), name
        silent = (
            (parameter.grad.flatten(1) == 0).all(1)
            if parameter.dim() > 1
            else ~parameter.grad.bool()
        )
        assert not silent.any(), name
    memory.zero_grad()
    memory.tap = torch.zeros_like
    memory(stream(12))[0].square().sum().backward()
    assert memory.interface.weight.grad is None or not memory.interface.weight.grad.any()
    assert not memory.recurrent.weight.grad[:, 10:].any()


def test_gradients_are_finite_over_a_long_stream(memory):
    memory.float()
    memory(30 * stream(150, batch=1).float())[0].square().mean().backward()
    assert all(p.grad.isfinite().all() for p in memory.parameters())


def test_the_gradient_of_a_whole_stream_is_its_slope():
    torch.manual_seed(1)
    memory, x = NTM(**SIZES).double(), stream(4, batch=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: memory(x)[0], (x,), fast_mode=True)


def test_the_count_of_operations(memory):
    with FlopCounterMode(display=False) as counter:
        memory(stream(1, batch=1))
    products = counter.get_total_flops()
    assert products <= memory.flops_per_step() <= 3 * products
    before, memory.slots = memory.flops_per_step(), 2 * memory.slots
    assert memory.flops_per_step() > before


def test_what_is_refused():
    for name in ("width", "hidden", "slots", "word", "heads"):
        for kind in (NTM, DNC) if name != "heads" else (DNC,):
            with pytest.raises(ValueError, match=name):
                kind(**{"width": 4, name: 0})


def test_a_tape_written_in_order_is_read_in_order():
    memory, words = NTM(2, slots=5, word=3).double(), stream(3, batch=3)[:, :, :3]
    held = memory.empty(3)

    def told(add: Tensor, reader: int, writer: int, erase: float) -> Tensor:
        keys, positive = add.new_zeros(3, 6), add.new_full((3, 4), ON)
        gates = torch.cat((add.new_full((3, 2), OFF), add.new_full((3, 3), erase)), 1)
        shifts = torch.full((3, 2, 3), OFF, dtype=add.dtype)
        shifts[:, 0, 1 + reader] = shifts[:, 1, 1 + writer] = ON
        return torch.cat((keys, add, positive, gates, shifts.flatten(1)), 1)

    for step in range(3):
        held, _ = memory.step(told(words[:, step], 0, 1, ON), held)
    for step in range(3):
        held, reads = memory.step(told(torch.zeros_like(words[:, 0]), 1, 0, OFF), held)
        torch.testing.assert_close(reads[:, 0], words[:, step].tanh(), atol=1e-5, rtol=0)
    _, reads = memory.step(told(torch.zeros_like(words[:, 0]), -1, 0, OFF), held)
    torch.testing.assert_close(reads[:, 0], words[:, 1].tanh(), atol=1e-5, rtol=0)


def spoken(
    key: Tensor,
    vector: Tensor,
    mode: int,
    free: float = OFF,
    write: float = OFF,
    improved: bool = False,
) -> Tensor:
    """Return the interface of a DNC with one reader, word 3: write to room, read by a mode."""
    some = lambda value, count=1: key.new_full((len(key), count), value)  # noqa: E731
    modes = some(OFF, 3)
    modes[:, mode] = ON
    positive = [some(400.0, 2), *([some(ON, 2)] if improved else [])]
    gates = [some(ON, 3), some(free), some(ON), some(write), *([some(ON, 6)] if improved else [])]
    return torch.cat((key, key, vector, *positive, *gates, modes), 1)


def test_a_store_is_read_forward_and_backward_in_the_order_of_writing():
    memory, words = DNC(2, slots=5, word=3, heads=1).double(), stream(3, batch=3)[:, :, :3]
    held, nothing = memory.empty(3), torch.zeros_like(words[:, 0])
    for step in range(3):
        held, _ = memory.step(spoken(nothing, words[:, step], 1, write=ON), held)
    held, reads = memory.step(spoken(words[:, 0], nothing, 1), held)
    found = [reads[:, 0]]
    for mode in (2, 2, 0):
        held, reads = memory.step(spoken(nothing, nothing, mode), held)
        found.append(reads[:, 0])
    torch.testing.assert_close(torch.stack(found, 1), words[:, [0, 1, 2, 1]], atol=1e-3, rtol=0)


@pytest.mark.parametrize("improved", [False, True])
def test_what_is_freed_is_room_and_only_wiped_by_the_improved(improved):
    memory, words = (
        DNC(2, slots=5, word=3, heads=1, improved=improved).double(),
        stream(2)[:, :, :3],
    )
    held, nothing = memory.empty(3), torch.zeros_like(words[:, 0])
    for step in range(2):
        held, _ = memory.step(spoken(nothing, words[:, step], 1, write=ON, improved=improved), held)
    held, _ = memory.step(spoken(words[:, 0], nothing, 1, improved=improved), held)
    torch.testing.assert_close(held.usage[0].sum(), torch.tensor(2.0).double(), atol=1e-3, rtol=0)
    held, _ = memory.step(spoken(words[:, 1], nothing, 1, free=ON, improved=improved), held)
    torch.testing.assert_close(held.usage[0].sum(), torch.tensor(1.0).double(), atol=1e-3, rtol=0)
    kept = held.memory.abs().sum((1, 2))
    expected = words[:, 1:].abs().sum((1, 2)) if improved else words.abs().sum((1, 2))
    torch.testing.assert_close(kept, expected, atol=1e-2, rtol=0)
