"""The compressive transformer: what it compresses, and what learns from what."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from studies.episodes.transformer_xl import Compressive, TransformerXL, reconstruction_loss

WIDTH = 8


def made(**dials) -> Compressive:
    torch.manual_seed(0)
    sizes = {"layers": 2, "heads": 2, "segment": 4, "memory": 4, "compressed": 6, **dials}
    return Compressive(WIDTH, hidden=12, **sizes).double()


def stream(steps: int, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, steps, WIDTH, generator=generator, dtype=torch.float64)


def as_identity(model: Compressive) -> Compressive:
    with torch.no_grad():
        for layer in model.compressors:
            layer.weight.copy_(torch.eye(WIDTH))
            layer.bias.zero_()
    return model


@pytest.mark.parametrize("memory", [0, 3, 4, 7])
def test_compressing_nothing_is_transformer_xl_with_both_memories(memory):
    model = as_identity(made(memory=memory, rate=1))
    plain = TransformerXL(WIDTH, 4, memory + 6, hidden=12, layers=2, heads=2).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    x = stream(40)
    torch.testing.assert_close(model(x)[0], plain(x)[0], atol=1e-12, rtol=0)
    assert model.reconstruction == 0


def test_what_leaves_the_memory_is_compressed_in_order():
    model, x = made(memory=6), stream(28)
    compressed, recent = model(x)[1].memory
    # The first layer's inputs are the stream: 6 of 28 steps are kept, the 12 before them are 6.
    torch.testing.assert_close(recent.rows[0], x[:, 22:])
    layer = model.compressors[0]
    weight = layer.weight.unflatten(1, (2, WIDTH)).transpose(1, 2)
    expected = F.conv1d(x[:, 10:22].transpose(1, 2), weight, layer.bias, stride=2)
    torch.testing.assert_close(compressed.rows[0], expected.transpose(1, 2))
    assert (compressed.held, recent.held) == (6, 6)


def test_the_reconstruction_teaches_the_compressor_only():
    model, x = made(), stream(28)
    model(x)
    model.reconstruction.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("compressors"):
            assert parameter.grad.abs().max() > 0
        else:
            assert parameter.grad is None


def test_the_task_teaches_everything_but_the_compressor():
    model, x = made(), stream(28)
    (model(x)[0] * stream(28, seed=5)).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("compressors")


def test_every_parameter_still_learns_after_three_steps():
    model, x = made(), stream(28)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        ((model(x)[0] - stream(28, seed=5)).square().mean() + model.reconstruction).backward()
        optimizer.step()
    for parameter, first in zip(model.parameters(), before, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert (parameter - first).abs().max() > 0


def test_the_reconstruction_by_hand():
    model = made(heads=1)
    layer, states, old = model.layers[0], stream(4), stream(6, seed=2)
    new = model.compress(0, old)
    with torch.no_grad():
        q = layer.query(layer.norm(states)) / WIDTH**0.5
        seen = []
        for rows in (old, new):
            k, v = layer.key_value(layer.norm(rows)).chunk(2, -1)
            seen.append((q @ k.mT).softmax(-1) @ v)
        expected = (seen[0] - seen[1]).square().mean()
    torch.testing.assert_close(reconstruction_loss(layer, states, old, new).detach(), expected)


def test_the_reconstruction_is_a_mean_over_compressions():
    model, x, state = made(), stream(24), None
    model(x)
    whole, single = model.reconstruction.detach(), []
    for piece in x.split(3, 1):
        _, state = model(piece, state)
        single.append(float(model.reconstruction.detach()))
    single = [loss for loss in single if loss]
    assert len(single) == 5  # of 6 segments the first leaves nothing
    assert sum(single) / 5 == pytest.approx(float(whole))
    with torch.no_grad():
        model(x)
    assert model.reconstruction == 0


def test_training_the_compressor_reconstructs_better():
    model, x = made(segment=8, memory=8, rate=4), stream(48, 8).cumsum(1) / 3
    optimizer = torch.optim.Adam(model.compressors.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        model(x)
        model.reconstruction.backward()
        optimizer.step()
        losses.append(float(model.reconstruction.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("wrong", [{"segment": 5}, {"memory": 5}, {"rate": 0}])
def test_wrong_dials_are_refused(wrong):
    with pytest.raises(ValueError):
        made(**wrong)


def test_a_memory_changed_between_streams_is_checked():
    model, x = made(), stream(20)
    model.memory, model.compressed = 6, 0
    assert model(x)[1].memory[1].rows[0].shape[1] == 6
    model.memory = 3
    with pytest.raises(ValueError, match="remainder"):
        model(x)
