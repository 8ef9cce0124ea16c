"""The report on speed: parts measured anew replace their own section and no other."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

from bench import __main__ as bench
from bench import decoding as decode_bench
from bench import engine as engine_bench
from bench import memories as memory_bench
from bench import models as model_bench
from citypaths import decoding
from studies.city_map.survey import draw_sample
from studies.episodes import MEMORIES


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
    assert names == [*model_bench.OURS, "feedback_transformer_pytorch"]
    assert lines[-1][1:] == ("not installed", "")
    for _, _, ratio in lines[:-1]:
        assert float(ratio) > 0


@pytest.mark.parametrize("name", ["models", "decoding", "memories"])
def test_parts_are_known_to_the_command(name):
    assert name in bench.BENCHES


def test_beams_are_timed_batched_and_one_by_one_and_a_missing_peer_is_named(monkeypatch, tennessee):
    for name, value in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2, "BEAMS": 2, "STEPS": 3}.items():
        monkeypatch.setattr(decode_bench, name, value)
    monkeypatch.setattr(decode_bench, "find_spec", lambda name: None)
    sizes = []

    def beam(*args, batch, **options):
        sizes.append(batch)
        return decoding.beam(*args, batch=batch, **options)

    monkeypatch.setattr(decode_bench, "decoding", SimpleNamespace(beam=beam))
    lines = decode_bench.beam_lines(tennessee, queries=5, rounds=1)
    held = len(draw_sample(tennessee, 5).pairs)
    assert sizes == [held, 1, held, 1] * 2 and held > 1, (
        "each is called in turn, and once to warm up"
    )
    models = ["transformer, batched", "transformer, one by one", "rnn, batched", "rnn, one by one"]
    assert [line[0].split(": ")[1] for line in lines] == [*models, "transformers (Hugging Face)"]
    assert lines[0][2] == "1.00" and lines[-1][1:] == ("not installed", "")
    rates = [float(line[1].split()[0].replace(",", "")) for line in lines[:-1]]
    for rate, line in zip(rates, lines, strict=False):
        assert rate > 0 and float(line[2]) == pytest.approx(rates[0] / rate, rel=0.05, abs=0.01)


def test_every_memory_is_timed_and_only_what_grows_holds_more(monkeypatch):
    small = {"WIDTH": 8, "HIDDEN": 8, "STREAMS": 2, "STEPS": 32, "LONG": 96, "ROWS": (50, 100)}
    for name, value in small.items():
        monkeypatch.setattr(memory_bench, name, value)
    lines = memory_bench.bench_memories(1)
    assert len(lines) == 2 * len(MEMORIES) + 3 * len(memory_bench.GROWN) + 2
    assert all(float(ratio) > 0 for _, _, ratio in lines)
    streams = {what.split(",")[0]: cost for what, cost, _ in lines if "against step" in what}
    for kind, cost in streams.items():
        held = float(cost.split(", ")[1].split(" times")[0])
        assert (held > 1.5) == (kind == "transformer"), kind
    dials = [cost for what, cost, _ in lines if what.startswith("dnc, slots")]
    held = [int(cost.split("step, ")[1].split(" ")[0].replace(",", "")) for cost in dials]
    assert held == sorted(held) and held[-1] > 10 * held[0]  # the link grows as the square


def test_paths_are_measured_in_a_process_of_its_own(tennessee, tmp_path):
    tennessee.save(tmp_path / "graph.npz")
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        done = fresh.submit(engine_bench._all_paths, tmp_path / "graph.npz")
        times, paths, tokens, resident = done.result()
    assert len(times) == 3 and min(times) > 0
    assert 0 < paths < tokens and resident > 0
