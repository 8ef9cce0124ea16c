"""The copy task: what is shown, how mistakes are counted, and that a memory learns it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studies.episodes.dnc import DNC
from studies.episodes.memory import Memory
from studies.episodes.ntm import NTM, copy_batch, copy_curves, train_copy


def test_a_stream_shows_bits_between_flags_then_nothing():
    stream = copy_batch(40, 3, 5, torch.Generator().manual_seed(0))
    assert stream.shape == (40, 8, 7)
    flags = torch.zeros(8, 2)
    flags[0, 0] = flags[4, 1] = 1
    assert torch.equal(stream[..., 5:], flags.expand(40, -1, -1))
    shown = stream[:, 1:4, :5]
    assert set(shown.unique().tolist()) == {0.0, 1.0} and abs(shown.mean() - 0.5) < 0.05
    assert shown.sum() == stream[..., :5].sum()


class Echo(Memory):
    """Says what was shown, in order; a bit that is wrong is said with the share `wrong`."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.width, self.scale = 6, torch.nn.Parameter(torch.tensor(9.0))
        self.wrong, self.draw = wrong, torch.Generator().manual_seed(0)

    def start(self, batch: int) -> None: ...

    def flops_per_step(self) -> int:
        return 1

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        length = x.shape[1] // 2 - 1
        flips = torch.rand(x.shape, generator=self.draw) < self.wrong
        signs = (2 * x - 1) * (1 - 2 * flips.float())
        return self.scale * torch.cat((x[:, : length + 2], signs[:, 1 : length + 1]), 1), state


@pytest.mark.parametrize("wrong", [0.0, 0.25, 1.0])
def test_wrong_bits_are_counted_per_sequence(wrong):
    counted = train_copy(Echo(wrong), 40, longest=3, every=40)["wrong_bits"]
    assert counted.iloc[0] == pytest.approx(wrong * 4 * 2, rel=0.1)


def test_training_is_repeated_exactly_and_starts_at_chance():
    histories = []
    for _ in range(2):
        torch.manual_seed(0)
        histories.append(train_copy(NTM(6, 6, 4, 4), 10, longest=3, every=5, seed=3))
    assert histories[0].equals(histories[1])
    assert histories[0]["sequences"].tolist() == [80, 160]
    assert 2.5 < histories[0]["wrong_bits"][0] < 5.5  # 4 bits * 2 vectors / 2 = 4 by chance


def test_a_dnc_learns_to_copy():
    torch.manual_seed(0)
    memory = DNC(6, hidden=16, slots=6, word=8, heads=1)
    history = train_copy(memory, 300, longest=2, every=50)["wrong_bits"]
    assert history.iloc[0] > 1.7 and history.iloc[-1] < 0.8  # 3 by chance


def test_the_curves_are_of_two_memories():
    curves = copy_curves(80)
    assert dict(zip(curves["memory"], curves["parameters"], strict=True)) == {
        "lstm": 19_464,
        "ntm": 9_124,
    }
    assert curves.groupby("memory").size().tolist() == [2, 2]
    assert curves["wrong_bits"].max() == pytest.approx(10, abs=4)
