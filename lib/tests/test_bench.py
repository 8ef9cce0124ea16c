"""The report on speed: parts measured anew replace their own section and no other."""

from __future__ import annotations

import pytest

from citypaths import bench, model_bench


def test_a_part_replaces_its_own_section():
    first = bench.page({"trees": bench.section([("a", "1 ms", "1")]), "models": "| m |"})
    second = bench.page({"models": "| new |", "paths": "| p |"}, first)
    assert second.index("## Trees") < second.index("## Paths") < second.index("## Models")
    assert "| a | 1 ms | 1 |" in second and "| new |" in second and "| m |" not in second
    assert bench.page({}, second) == second
    assert bench.page({}).count("##") == 0


def test_every_family_is_measured_and_missing_peers_are_named(monkeypatch, tennessee):
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "PATHS": 2, "STEPS": 4}.items():
        monkeypatch.setattr(model_bench, name, value)
    monkeypatch.setattr(model_bench, "find_spec", lambda name: None)
    lines = model_bench.training_lines(tennessee, rounds=1)
    names = [what.split(": ")[-1] for what, _, _ in lines]
    assert names == [*model_bench.OURS, "feedback_transformer_pytorch", "labml_nn"]
    assert [line[1:] for line in lines[-2:]] == [("not installed", "")] * 2
    for _, _, ratio in lines[:-2]:
        assert float(ratio) > 0


@pytest.mark.parametrize("name", ["models", "decoding"])
def test_parts_are_known_to_the_command(name):
    assert name in bench.BENCHES
