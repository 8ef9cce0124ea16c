"""A GRU trained briefly on Tennessee, whose states are keys; read only."""

from __future__ import annotations

import pytest

from citypaths.training.loop import TrainSettings, train


@pytest.fixture(scope="session")
def trained(tiny_dataset, tmp_path_factory):
    recipe = TrainSettings(150, 1024, 1.6e-2, evaluations=1)
    settings = {"width": 32, "tied": True}
    return train("rnn", tiny_dataset, tmp_path_factory.mktemp("gru"), recipe, settings)
