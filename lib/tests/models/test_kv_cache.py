"""Rotary positions and caches of keys and values, against what they must do for any path."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from citypaths.models.transformer import Cache, Rotary


def test_positions_are_turned_alike_within_and_beyond_the_table():
    """Products of turned vectors depend on how far apart they are, however far along the path."""
    rotary, (a, b) = Rotary(8, places=10), torch.randn(2, 8)
    near = [float(rotary(a[None], i) @ rotary(b[None], i + 3).T) for i in (0, 5, 9, 40)]
    np.testing.assert_allclose(near, near[0], atol=1e-5)
    assert abs(float(rotary(a[None], 0) @ rotary(b[None], 4).T) - near[0]) > 1e-3
    whole = rotary(a.expand(20, 8))
    torch.testing.assert_close(whole[15], rotary(a[None], 15)[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.booleans())
def test_a_cache_never_changes_whatever_is_appended_to_others(parents, graded):
    """Any tree of continuations: each cache holds its own path, in place or copied."""
    grown = [Cache.of(torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))]
    expected = [[0.0]]
    with torch.set_grad_enabled(graded):
        for number, parent in enumerate(parents, 1):
            parent %= len(grown)
            new = torch.full((2, 1, 1, 1), float(number))
            grown.append(grown[parent].append(new, -new))
            expected.append([*expected[parent], float(number)])
    for cache, path in zip(grown, expected, strict=True):
        assert cache.keys[1, 0, :, 0].tolist() == path
        assert (-cache.values)[0, 0, :, 0].tolist() == path


def test_a_cache_takes_whole_groups_of_rows():
    keys = torch.arange(6.0).view(6, 1, 1, 1)
    taken = Cache.of(keys, keys, group=2).take(torch.tensor([2, 0]))
    assert taken.keys.flatten().tolist() == [4, 5, 0, 1] and taken.group == 2
