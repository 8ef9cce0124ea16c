"""The copy task: what is shown, how mistakes are counted, and that a memory learns it."""

from __future__ import annotations

import torch

from studies.episodes.copying import Copier, copy_batch, train_copy, wrong_bits
from studies.episodes.dnc import DNC
from studies.episodes.ntm import NTM


def test_a_stream_shows_bits_between_flags_then_nothing():
    stream = copy_batch(40, 3, 5, torch.Generator().manual_seed(0))
    assert stream.shape == (40, 8, 7)
    flags = torch.zeros(8, 2)
    flags[0, 0] = flags[4, 1] = 1
    assert torch.equal(stream[..., 5:], flags.expand(40, -1, -1))
    shown = stream[:, 1:4, :5]
    assert set(shown.unique().tolist()) == {0.0, 1.0} and abs(shown.mean() - 0.5) < 0.05
    assert shown.sum() == stream[..., :5].sum()


def test_the_bits_asked_for_are_those_shown_in_their_order():
    stream = copy_batch(4, 3, 5, torch.Generator().manual_seed(0))
    logits, bits = Copier(NTM(4, 5, 3, 3), 5)(stream)
    assert logits.shape == bits.shape == (4, 3, 5)
    assert torch.equal(bits, stream[:, 1:4, :5])


def test_wrong_bits_are_counted_per_sequence():
    bits = torch.tensor([[[1.0, 0], [1, 1]], [[0, 0], [1, 0]]])
    right = 2 * bits - 1
    assert wrong_bits(right, bits) == 0
    assert wrong_bits(-right, bits) == 4
    right[0, 0, 0] = -3
    assert wrong_bits(right, bits) == 0.5


def test_training_is_repeated_exactly_and_starts_at_chance():
    histories = []
    for _ in range(2):
        torch.manual_seed(0)
        memory = NTM(4, 6, 4, 4)
        histories.append(train_copy(memory, 20, bits=4, longest=3, every=10, seed=3))
    assert histories[0] == histories[1]
    assert 2.5 < histories[0][0] < 5.5  # 4 bits * 2 vectors / 2 = 4 by chance


def test_a_dnc_learns_to_copy():
    torch.manual_seed(0)
    memory = DNC(8, hidden=16, slots=6, word=8, heads=1)
    history = train_copy(memory, 300, bits=4, longest=2, rate=1e-2, every=50)
    assert history[0] > 1.7 and history[-1] < 0.8  # measured: 2.1 and 0.34, after 3 by chance
