"""Memories on episodes: read alike however cut, trained and resumed, asked and tampered with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from citypaths import sizes
from citypaths.judging import ledger as results
from citypaths.training import loop as train_module
from citypaths.training.checkpoints import load_trained
from citypaths.training.loop import TrainSettings, train
from citypaths.training.recipes import arms, recipe
from studies.episodes import MEMORIES, study
from studies.episodes import __main__ as command
from studies.episodes.exam import answer
from studies.episodes.maps import Atlas
from studies.episodes.model import EpisodeModel, Lessons, make_memory
from studies.episodes.task import STEP, Episodes, Task
from studies.memory.streams import LSTM

SMALL = {"width": 16, "hidden": 12, "symbols": 12}
TASK = Task(cities=6, symbols=12, queries=2, recalls=3, closures=1, delay=2)
SHORT = TrainSettings(steps=9, learning_rate=1e-2, evaluations=3, save_seconds=0)


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    random = np.random.default_rng(0)
    return Atlas(random.uniform(35, 45, 300), random.uniform(-90, -75, 300), "here")


@pytest.fixture(scope="module")
def episodes(atlas) -> Episodes:
    return study.asked(TASK, atlas, 6)


@pytest.fixture(params=sorted(MEMORIES))
def model(request) -> EpisodeModel:
    torch.manual_seed(0)
    return EpisodeModel(None, request.param, **SMALL).eval()


def test_steps_read_in_pieces_are_steps_read_at_once(model, episodes):
    with torch.no_grad():
        whole, state = model(episodes.steps)[0], None
        for t in range(whole.shape[1]):
            step = episodes.steps.each(lambda column: column[:, t : t + 1])  # noqa: B023
            logits, state = model(step, state)
            assert torch.allclose(logits[:, 0], whole[:, t], atol=1e-4)


def test_the_first_city_answered_is_the_likeliest_after_the_question(model, episodes):
    found = answer(model, episodes)
    with torch.no_grad():
        logits, _ = model(episodes.steps)
    shown, maps = episodes.shown.kind.shape[1], episodes.maps
    first = shown + TASK.recalls
    assert (episodes.steps.kind[:, first] == STEP).all()
    named = maps.city_of(12)[np.arange(6), logits[:, first].argmax(-1)]
    assert np.array_equal(found.paths[:, 0, 1], named)
    asks = logits[:, shown:first].argmax(-1).numpy()
    assert np.array_equal(found.recalled, np.take_along_axis(maps.city_of(12), asks, 1))


def test_a_tap_works_from_the_first_question_on_and_is_taken_off(model, episodes):
    plain = answer(model, episodes)
    calls = []
    answer(model, episodes, lambda reads: calls.append(reads.shape) or torch.zeros_like(reads))
    assert model.memory.tap is None and model.memory.rounding is None
    assert all(shape[0] == 6 for shape in calls) and (bool(calls) or isinstance(model.memory, LSTM))
    again = answer(model, episodes, rounding=torch.bfloat16)
    assert model.memory.rounding is None and again.paths.shape == plain.paths.shape
    assert np.array_equal(answer(model, episodes).paths, plain.paths)


@pytest.mark.parametrize("kind", ["lstm", "compressive", "dnc", "associative"])
def test_a_stopped_training_ends_with_the_same_bits(atlas, tmp_path, monkeypatch, kind, episodes):
    lessons = Lessons(TASK, atlas, 4)
    options = {"kind": kind, **SMALL}

    def watch(model):
        return study.marks(episodes, answer(model, episodes))

    monkeypatch.setattr(train_module, "LOG_EVERY", 1)
    whole = train("episodes", lessons, tmp_path / "whole", SHORT, options, watch)

    def stop(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slow = replace(SHORT, evaluations=3)
        train("episodes", lessons, tmp_path / "stopped", slow, options, stop)
    resumed = train("episodes", lessons, tmp_path / "stopped", SHORT, options, watch)
    assert resumed.steps == whole.steps == 9
    weights = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    loaded = load_trained(tmp_path / "whole", atlas)
    with torch.no_grad():
        assert torch.equal(loaded(episodes.steps)[0], whole.model.eval()(episodes.steps)[0])


def test_lessons_draw_every_dial_up_to_its_end(atlas):
    lessons = Lessons(TASK.varied(cities=8, closures=3), atlas, 2, least=4)
    tasks = [lessons.drawn(min(1, t / 50), np.random.default_rng(t)) for t in range(100)]
    assert {t.cities for t in tasks[:5]} == {4} and {t.cities for t in tasks[50:]} == set(
        range(4, 9)
    )
    assert {t.show for t in tasks} == {"edges", "paths"}
    assert {t.delay for t in tasks} == {0, 1, 2} and max(t.closures for t in tasks) <= 3
    stream = iter(lessons.batches(TrainSettings(steps=100), "cpu"))
    one, two = next(stream), next(stream)
    later = lessons.batches(TrainSettings(steps=100), "cpu")
    later.position = (1,)
    assert torch.equal(next(iter(later)).here, two.here) and len(one) == 2


def test_an_arm_has_as_many_parameters_as_fit():
    for kind in MEMORIES:
        hidden = study.fitted(kind, 16, 12_000)
        assert make_memory(kind, 16, hidden=hidden).parameters_count <= 12_000
        assert make_memory(kind, 16, hidden=hidden + 4).parameters_count > 12_000
    with pytest.raises(ValueError, match="more than 100 parameters"):
        study.fitted("dnc", 16, 100)


def test_an_untrained_model_goes_through_all_exams(atlas, episodes):
    torch.manual_seed(0)
    models = {
        (kind, seed): train_module.Trained(EpisodeModel(None, kind, **SMALL), None, 1, 10, 1.0)
        for kind in ("lstm", "dnc")
        for seed in (0, 1)
    }
    japan = Atlas(atlas.lat, atlas.lon, "Japan")
    exams = study.exams(TASK, atlas, japan, 5)
    rows = study.examine(models, exams)
    assert len(rows) == 4 * 12 + 2 * 12
    assert {row["shown"] for row in rows} == {None, 2, 6, 12, 24}
    assert {row["cities"] for row in rows} == {4, 6, 8, 12}
    assert {row["subset"] for row in rows} == {"", "1 closed", "3 closed", "delay 64", "Japan"}
    assert {(row["family"], row["regime"], row["study"]) for row in rows} == {
        ("memory", "closed_book", "episodes"), ("floor", "open_map", "episodes")}  # fmt: skip
    for row in rows:
        results._check(row)
        assert 0 <= row["recall"] <= 1 and row["queries"] <= 10
    table = study.over_seeds(rows)
    assert list(table.index) == ["lstm", "dnc", "random walk", "nearest hop"]
    assert list(table.columns) == list(exams)
    both = [row["hard_success"] for row in rows if row["model"] == "dnc" and row["shown"] == 12]
    assert table.loc["dnc", "12 paths shown"] == pytest.approx(np.mean(both))
    causes = study.influence(models, episodes)
    assert list(causes.columns) == list(study.TAMPERED)
    assert causes.loc["lstm", "reads blanked"] == causes.loc["lstm", "as it is"]
    assert causes.filter(like="x memory").notna().any(axis=1).to_dict() == {
        "lstm": False,
        "dnc": True,
    }


def test_a_memory_resized_for_an_exam_has_its_own_size_again(episodes):
    torch.manual_seed(0)
    model = EpisodeModel(None, "dnc", **SMALL)
    whole, seen = answer(model, episodes), []
    model.memory.register_forward_hook(lambda memory, *_: seen.append(memory.slots))
    half = answer(model, episodes, share=0.5)
    assert set(seen) == {16} and model.memory.slots == 32
    assert half.paths.shape == whole.paths.shape
    assert np.array_equal(answer(model, episodes, share=1.0).paths, whole.paths)


def test_arms_of_a_size_are_alike_in_parameters():
    task = study.task_of(sizes.get_size("small"))
    counts = {}
    for label in arms("small", "episodes"):
        settings = recipe("small", label, "episodes").settings
        hidden = study.fitted(**settings, parameters=study.PARAMETERS)
        model = EpisodeModel(None, **settings, hidden=hidden, symbols=task.symbols)
        counts[label] = model.memory.parameters_count
    assert max(counts.values()) <= study.PARAMETERS
    assert min(counts.values()) > 0.85 * study.PARAMETERS, counts


def test_the_command_trains_examines_and_files_its_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path))
    monkeypatch.setattr(sizes, "data_dir", lambda: tmp_path / "data")
    words = ["--size", "tiny", "--arms", "lstm", "--seeds", "0", "1", "--exams", "3"]
    assert command.main([*words, "--overrides", '{"budget": 1e8}']) == 0
    page = (tmp_path / "tiny" / "07-episodes.md").read_text()
    assert "| lstm |" in page and page.count("![") == 2
    assert len(list((tmp_path / "figures").glob("07-*-tiny.png"))) == 2
    rows = results.load_results()
    assert set(rows["model"]) == {"lstm", "none"} and len(rows) == 12 * (2 + 2)
    trained = list((tmp_path / "data").glob("*/models/lstm-seed*/checkpoint.safetensors"))
    assert len(trained) == 2
