"""Nested shares of a dataset's training paths."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from citypaths.data.batches import Batches
from citypaths.files import DataFileError
from citypaths.training.loop import TrainSettings, train
from studies.learning.study import Share, halves, in_share


def pairs(rows) -> set[tuple[int, int]]:
    return set(zip(rows.source.tolist(), rows.target.tolist(), strict=True))


def test_shares_are_nested_and_as_large_as_asked(tiny_dataset):
    everything = tiny_dataset.rows("train")
    before: set[tuple[int, int]] = set()
    for share in (0.01, 0.1, 0.5, 0.9, 1.0):
        fewer = Share.of(tiny_dataset, share, draw=3)
        mine = pairs(fewer.rows("train"))
        assert before <= mine <= pairs(everything)
        assert fewer.counts["train"] == len(mine)
        spread = 4 * np.sqrt(share * (1 - share) * len(everything))
        assert len(mine) == pytest.approx(share * len(everything), abs=spread)
        before = mine
    assert before == pairs(everything)


def test_draws_differ(tiny_dataset):
    rows = tiny_dataset.rows("train")
    one, other = (in_share(rows, 0.5, draw) for draw in (0, 1))
    assert 0.4 < (one == other).mean() < 0.6


def test_other_parts_and_flags_are_the_whole_s(tiny_dataset):
    fewer = Share.of(tiny_dataset, 0.1)
    files = set(tiny_dataset.folder.iterdir())
    for part in ("valid", "test"):
        assert pairs(fewer.rows(part)) == pairs(tiny_dataset.rows(part))
        whole, flags = tiny_dataset.queries(part)
        rows, same = fewer.queries(part)
        assert pairs(rows) == pairs(whole) and (same == flags).all()
        assert fewer.contained(rows).sum() < flags.sum()
    assert set(tiny_dataset.folder.iterdir()) == files


def test_halves_are_all_paths_once(tiny_dataset):
    inside, outside = halves(tiny_dataset, 0.25, 4)
    fewer = Share.of(tiny_dataset, 0.25, 4).rows("train").paths
    assert [path.tolist() for path in inside] == [path.tolist() for path in fewer]
    both = sorted(tuple(path) for half in (inside, outside) for path in half.padded().tolist())
    assert len(both) == tiny_dataset.counts["train"]
    assert len(halves(tiny_dataset, 0.0, 4)[0]) == 0 == len(halves(tiny_dataset, 1.0, 4)[1])


def test_batches_hold_the_share_alone(tiny_dataset):
    fewer = Share.of(tiny_dataset, 0.05, 2)
    mine, seen = pairs(fewer.rows("train")), set()
    for batch in islice(Batches(fewer, 512, seed=1), 60):
        seen |= set(zip(batch.source.tolist(), batch.target.tolist(), strict=True))
    assert seen == mine


def test_a_checkpoint_belongs_to_its_share(tiny_dataset, tmp_path):
    settings = TrainSettings(2, 128, evaluations=1)
    train("rnn", Share.of(tiny_dataset, 0.1), tmp_path, settings, {"width": 4})
    again = train("rnn", Share.of(tiny_dataset, 0.1), tmp_path, settings, {"width": 4})
    assert again.steps == 2
    for other in (Share.of(tiny_dataset, 0.2), Share.of(tiny_dataset, 0.1, 1), tiny_dataset):
        with pytest.raises(DataFileError, match="other settings or data"):
            train("rnn", other, tmp_path, settings, {"width": 4})


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_shares_out_of_range(tiny_dataset, share):
    with pytest.raises(ValueError, match="share is above 0"):
        Share.of(tiny_dataset, share)
