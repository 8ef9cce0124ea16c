"""The copy task: what is shown, how mistakes are counted, and that a memory learns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import Tensor

from studies.episodes.dnc import DNC
from studies.episodes.ntm import NTM
from studies.memory import copying
from studies.memory.copying import CHANCE, copy_batch, draw_copies, train_copies
from studies.memory.streams import LSTM, Memory


def test_a_stream_shows_bits_between_flags_then_nothing():
    stream = copy_batch(3, torch.Generator().manual_seed(0))
    assert stream.shape == (16, 8, 8)
    flags = torch.zeros(8, 2)
    flags[0, 0] = flags[4, 1] = 1
    assert torch.equal(stream[..., 6:], flags.expand(16, -1, -1))
    shown = stream[:, 1:4, :6]
    assert set(shown.unique().tolist()) == {0.0, 1.0} and abs(shown.mean() - 0.5) < 0.1
    assert shown.sum() == stream[..., :6].sum()


class Echo(Memory):
    """Says what was shown, in order; a bit is said wrong with a probability."""

    width = 8

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(9.0))
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
    counted = train_copies({"echo": Echo(wrong)}, 80)["wrong_bits"]
    assert counted.mean() == pytest.approx(2 * wrong * CHANCE, rel=0.15)


def test_training_is_repeated_exactly_and_starts_at_chance():
    tables = []
    for _ in range(2):
        torch.manual_seed(0)
        memories = {"lstm": LSTM(8, 6), "ntm": NTM(8, 6, slots=4, word=4)}
        tables.append(train_copies(memories, 80, seed=3))
    assert tables[0].equals(tables[1])
    assert tables[0]["sequences"].tolist() == [640, 1280] * 2
    assert tables[0]["memory"].tolist() == ["lstm"] * 2 + ["ntm"] * 2
    assert tables[0]["wrong_bits"].max() == pytest.approx(CHANCE, rel=0.3)


def test_a_dnc_learns_to_copy(monkeypatch):
    for name, value in {"LONGEST": 2, "BITS": 4, "EVERY": 50}.items():
        monkeypatch.setattr(copying, name, value)
    torch.manual_seed(0)
    memory = DNC(6, hidden=16, slots=6, word=8, heads=1)
    wrong = copying.train_copies({"dnc": memory}, 300)["wrong_bits"]
    assert wrong.iloc[0] > 1.7 and wrong.iloc[-1] < 0.8  # 3 by chance


def test_the_end_is_told_in_the_title():
    curves = pd.DataFrame({"memory": ["lstm", "lstm", "ntm", "ntm"], "sequences": [16, 32] * 2})
    curves = curves.assign(parameters=1_000, wrong_bits=[9.0, 7.0, 9.0, 0.25])
    (ax,) = draw_copies(curves).axes
    title = ax.get_title() or ax.get_title(loc="left")
    assert "lstm 7.0" in title and "ntm 0.2" in title
    assert [text.get_text().strip() for text in ax.texts] == [
        "lstm, 1,000 parameters",
        "ntm, 1,000 parameters",
    ]
    plt.close("all")
