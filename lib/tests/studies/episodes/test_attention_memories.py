"""Memories made of attention: what all keep to, the full transformer and Transformer-XL."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from studies.episodes.attention import Transformer
from studies.episodes.transformer_xl import Compressive, Memorizing, TransformerXL
from studies.memory.streams import assert_pieces_agree, numbers_held


def swapped(reads: torch.Tensor) -> torch.Tensor:
    """Each stream's reads from the stream before it."""
    return reads.roll(1, 0)


WIDTH, SEGMENT = 8, 4
XL = partial(TransformerXL, segment=SEGMENT, memory=6)
MODELS = {
    "transformer": Transformer,
    "xl": XL,
    "no memory": partial(XL, memory=0),
    "compressive": partial(Compressive, segment=SEGMENT, memory=4, compressed=3),
    "no recent memory": partial(Compressive, segment=SEGMENT, memory=0, compressed=3, rate=4),
    "memorizing": partial(Memorizing, segment=SEGMENT, memory=10, k=3),
}
WITH_MEMORY = [name for name in MODELS if name not in ("transformer", "no memory")]


def made(name: str, seed: int = 0, **dials):
    """Return a model whose every parameter is random, so that no zero hides a term."""
    torch.manual_seed(seed)
    model = MODELS[name](WIDTH, hidden=12, heads=2, **dials).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def stream(steps: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "wrong",
    [{"width": 7}, {"width": 6}, {"hidden": 0}, {"layers": 0}, {"heads": 0}]
    + [{"segment": 0}, {"memory": -1}, {"memory": 2.5}],
)
def test_wrong_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        XL(**{"width": 8, **wrong})


@pytest.mark.parametrize("tap", [None, torch.zeros_like, swapped])
@pytest.mark.parametrize("name", MODELS)
def test_pieces_agree(name, tap):
    model = made(name)
    model.tap = tap
    assert_pieces_agree(model, stream(27), cuts=(1, 3, 4, 5, 13, 16), tolerance=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_rounding_changes_what_is_kept_alike_in_pieces(name):
    model, x = made(name), stream(27)
    exact = model(x)[0]
    model.rounding = torch.bfloat16
    assert_pieces_agree(model, x, tolerance=1e-11)
    rounded = model(x)[0]
    assert rounded.isfinite().all()
    assert 1e-6 < (rounded - exact).abs().max() < 1


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_read_ahead_and_no_state_is_changed(name):
    model, x = made(name), stream(22)
    whole = model(x)[0]
    torch.testing.assert_close(model(x[:, :14])[0], whole[:, :14])
    for border in (9, 8):
        _, state = model(x[:, :border])
        before = tree_map(lambda leaf: leaf.clone() if torch.is_tensor(leaf) else leaf, state)
        first, second = model(x[:, border:], state)[0], model(x[:, border:], state)[0]
        assert torch.equal(first, second)
        for leaf, kept in zip(tree_leaves(state), tree_leaves(before), strict=True):
            assert torch.equal(leaf, kept) if torch.is_tensor(leaf) else leaf == kept


@pytest.mark.parametrize("name", MODELS)
def test_what_is_held_grows_only_where_it_says_so(name):
    model, x = made(name), stream(60)
    held, state = [numbers_held(model.start(2))], None
    for piece in x.split(5, 1):
        _, state = model(piece, state)
        held.append(numbers_held(state))
    assert (len(set(held)) > 1) == (name == "transformer")
    assert all(leaf.shape[0] == 2 for leaf in tree_leaves(state) if torch.is_tensor(leaf))


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_piece_changes_nothing(name):
    model, x = made(name), stream(9)
    _, state = model(x)
    nothing, same = model(x[:, :0], state)
    assert nothing.shape == (2, 0, WIDTH)
    torch.testing.assert_close(model(x, same)[0], model(x, state)[0])


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name):
    model, x = made(name), stream(27)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(x)[0] * stream(27, seed=9)).sum()
        (loss + getattr(model, "reconstruction", 0)).backward()
        for parameter in model.parameters():
            assert parameter.requires_grad
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0
        optimizer.step()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_has_read_is_copied_and_reads_in_low_precision(name):
    model, x = made(name).float(), stream(27).float()
    exact = model(x)[0]
    assert torch.equal(copy.deepcopy(model)(x)[0], exact)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = model(x)
        model(x, state)[0].sum().backward()
    assert output.dtype == torch.float32
    assert (output - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize("name", MODELS)
def test_everything_is_made_where_the_parameters_are_and_no_value_is_waited_for(name):
    model = made(name).to("meta")  # a device that has no values and mixes with no other
    x = torch.empty(2, 27, WIDTH, dtype=torch.float64, device="meta")
    output, state = model(x, model(x[:, :6], model.start(2))[1])
    assert output.device.type == "meta"
    assert {leaf.device.type for leaf in tree_leaves(state) if torch.is_tensor(leaf)} == {"meta"}


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_blanked_memory_tells_nothing_and_a_swapped_one_tells_of_another(name):
    model = made(name)
    past, now = stream(16), stream(SEGMENT, 1, 7).expand(2, -1, -1)
    state, turned = model(past)[1], model(past.flip(0))[1]
    own, other = model(now, state)[0], model(now, turned)[0]
    assert (own - other).abs().max() > 1e-3
    model.tap = swapped
    torch.testing.assert_close(model(now, state)[0], other)
    model.tap = torch.zeros_like
    assert torch.equal(model(now, state)[0], model(now, turned)[0])


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_no_gradient_passes_through_the_memory(name):
    model, x = made(name), stream(24).requires_grad_()
    y = model(x)[0]
    (gradient,) = torch.autograd.grad((y[:, 21] * stream(1, seed=9)[:, 0]).sum(), x)
    norms = gradient.norm(dim=-1).amin(0)
    assert gradient[:, :20].abs().max() == 0
    assert norms[20] > 0 and norms[21] > 0
    assert gradient[:, 22:].abs().max() == 0


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_gradients_flow_within_a_segment_from_piece_to_piece(name):
    model, x = made(name), stream(24).requires_grad_()
    gradients = []
    for cuts in ([24], [10, 1, 6, 7]):
        state, outputs = None, []
        for piece in x.split(cuts, 1):
            output, state = model(piece, state)
            outputs.append(output)
        loss = (torch.cat(outputs, 1) * stream(24, seed=9)).sum()
        gradients.append(torch.autograd.grad(loss, [x, model.u, model.norm.weight]))
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces)


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_as_counted(name):
    model, x = made(name), stream(64, 4)
    n, keys = (1, 64 + 1) if name == "transformer" else (SEGMENT, SEGMENT)
    with torch.no_grad():
        _, state = model(x)
        if name != "transformer":
            keys += model.earlier(state.memory)[0].shape[1]
        with FlopCounterMode(display=False) as counter:
            model(x[:, :n], state)
    shared = 2 * len(model.layers) * keys * WIDTH**2
    expected = 4 * n * model.flops_per_step()
    assert counter.get_total_flops() - shared == pytest.approx(expected, abs=4 * n)


# --- the full transformer and Transformer-XL ----------------------------------------------------


def test_a_transformer_blanked_sees_each_step_alone():
    model, x = made("transformer"), stream(12)
    model.tap = torch.zeros_like
    alone = torch.cat([model(step)[0] for step in x.split(1, 1)], 1)
    torch.testing.assert_close(model(x)[0], alone)


@pytest.mark.parametrize("segment", [1, 3, 8, 40])
def test_segments_that_remember_everything_are_one_full_pass(segment):
    full, x = made("transformer", layers=3), stream(30)
    model = TransformerXL(WIDTH, segment, 30, hidden=12, layers=3, heads=2).double()
    model.load_state_dict(full.state_dict())
    torch.testing.assert_close(model(x)[0], full(x)[0], atol=1e-12, rtol=0)


def test_reach_is_the_segment_and_a_memory_for_each_layer():
    torch.manual_seed(0)
    model = TransformerXL(WIDTH, 8, 8, hidden=12, layers=3, heads=2).double()
    x, end = stream(48, 1), 47
    with torch.no_grad():
        base, changed = model(x)[0][0, end], []
        for step in range(end + 1):
            other = x.clone()
            other[0, step] += stream(1, 1, 100 + step)[0, 0]
            changed.append(bool((model(other)[0][0, end] - base).abs().max() > 0))
    reach = 8 + 3 * 8 - 1
    assert changed == [end - step <= reach for step in range(end + 1)]


def test_the_order_of_the_memory_matters():
    model, x = made("xl"), stream(SEGMENT)
    _, state = model(stream(16))
    for order, same in (([0, 1, 2, 3, 4, 5], True), ([0, 1, 3, 2, 4, 5], False)):
        rows = tuple(rows[:, order] for rows in state.memory.rows)
        other = state._replace(memory=state.memory._replace(rows=rows))
        off = (model(x, other)[0] - model(x, state)[0]).abs().max()
        assert off == 0 if same else off > 1e-4


def test_the_memory_may_be_changed_between_streams():
    model, x = made("xl"), stream(30)
    short = model(x)[0]
    model.memory = 12
    assert model.start(2).memory.rows[0].shape == (2, 12, WIDTH)
    assert (model(x)[0] - short).abs().max() > 1e-3
    torch.testing.assert_close(model(x)[0][:, :8], short[:, :8])
    model.memory = -1
    with pytest.raises(ValueError, match="memory"):
        model(x)
