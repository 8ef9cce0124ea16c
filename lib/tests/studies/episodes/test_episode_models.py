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
from studies.episodes import LSTM, MEMORIES, make_memory, study
from studies.episodes import __main__ as command
from studies.episodes.atlas import Atlas
from studies.episodes.exam import answer
from studies.episodes.model import EpisodeModel, Lessons
from studies.episodes.task import STEP, Episodes, Task, varied

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
        whole, state = model(episodes.steps), None
        for t in range(whole.shape[1]):
            logits, state = model.read(episodes.steps.between(t, t + 1), state)
            assert torch.allclose(logits[:, 0], whole[:, t], atol=1e-4)


def test_the_first_city_answered_is_the_likeliest_after_the_question(model, episodes):
    found = answer(model, episodes)
    with torch.no_grad():
        logits = model(episodes.steps)
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
    again = answer(model, episodes, dtype=torch.bfloat16)
    assert model.memory.rounding is None and again.paths.shape == plain.paths.shape
    assert np.array_equal(answer(model, episodes).paths, plain.paths)


@pytest.mark.parametrize("kind", ["lstm", "compressive", "dnc", "associative"])
def test_a_stopped_training_ends_with_the_same_bits(atlas, tmp_path, monkeypatch, kind, episodes):
    lessons = Lessons(TASK, atlas, 4)
    options, watch = {"kind": kind, **SMALL}, study.watched(episodes)
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
        assert torch.equal(loaded(episodes.steps), whole.model.eval()(episodes.steps))


def test_lessons_draw_every_dial_up_to_its_end(atlas):
    lessons = Lessons(varied(TASK, cities=8, closures=3), atlas, 2, least=4)
    batches = lessons.batches(TrainSettings(steps=100), "cpu")
    tasks = [batches.task(step, np.random.default_rng(step)) for step in range(100)]
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
    exams = study.sizes_of_map(TASK, atlas, (4, 6), 5) | study.shown_paths(TASK, atlas, (2, 4), 5)
    exams |= study.disturbed(TASK, atlas, 5, (1,), (3,))
    rows = study.examine(models, exams) + study.floor_rows(exams)
    assert len(rows) == 4 * 6 + 2 * 6
    for row in rows:
        results._check(row)
        assert 0 <= row["recall"] <= 1 and row["queries"] <= 10
    table = study.over_seeds(rows)
    assert (
        list(table.index) == ["lstm", "dnc", "random walk", "nearest hop"] and table.shape[1] == 6
    )
    causes = study.influence(models, episodes)
    assert list(causes.columns) == list(study.TAPS)
    assert causes.loc["lstm", "reads blanked"] == causes.loc["lstm", "as it is"]
    sizes_tried = study.memory_sizes(models, episodes, (0.5, 1.0))
    assert list(sizes_tried.index) == ["dnc"]
    assert sizes_tried["1 x memory"].iloc[0] == pytest.approx(causes.loc["dnc", "as it is"])


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
