"""The exchange rate: how many times larger a model must be to match a small one that searches."""

from __future__ import annotations

from citypaths.dataset import Dataset
from citypaths.lab import arm_settings, train_arm
from citypaths.recurrence import Arm, budgeted
from citypaths.sizes import Size
from citypaths.train import Trained


def train_rung(size: Size, dataset: Dataset, width: int, seed: int) -> Trained:
    """Train (or load) a GRU of a width at the training FLOPs that notebook 04's arms spend.

    The two widths that notebook 04 trains are its `gru` and `gru-wide`, and are trained once; wide
    ones take half the learning rate, as there.
    """
    same = {size.width: "gru", 2 * size.width: "gru-wide"}
    rate = 1.0 if width <= size.width else 0.5
    arm = Arm("rnn", arm_settings(f"gru-{width}"), rate=rate)
    recipe = budgeted(size, dataset.graph, arm, seed)
    label = same.get(width, f"gru-{width}-budget")
    return train_arm(size, dataset, label, recipe, dict(arm.settings), None)
