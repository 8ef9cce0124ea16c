"""Training: the loss falls, and a run that was stopped anywhere ends with the same bits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import studies.recurrence  # noqa: F401  it registers its models
from citypaths.data.batches import IGNORE, Batches, batch_of, own_input
from citypaths.data.dataset import make_dataset
from citypaths.data.splits import recipe_for
from citypaths.files import DataFileError, read_json
from citypaths.map.shortest_paths import shortest_path_trees
from citypaths.models import registered
from citypaths.training import checkpoints
from citypaths.training import loop as train_module
from citypaths.training.checkpoints import load_history, load_trained, read_checkpoint
from citypaths.training.loop import Diverged, TrainSettings, _Run, train, training_flops

SMALL = {"width": 8}
SHORT = TrainSettings(steps=30, batch_tokens=256, evaluations=4, save_seconds=0)
VARIANTS = {
    "plain": ({}, SMALL),
    "own input": ({"own_input": 0.3}, SMALL),
    "hindsight": ({"hindsight": 0.5}, SMALL),
    "everything": (
        {"own_input": 0.2, "hindsight": 0.4},
        SMALL
        | {"cell": "lstm", "tied": True}
        | {"softmaxes": 2, "coordinates": "raw", "endpoints": "prefix"},
    ),
    "looped": ({}, {"width": 8, "heads": 2, "sampled": [1, 4], "backprop": 2, "noise": 0.5}),
    "act": ({"hindsight": 0.5}, {"width": 8, "heads": 2, "loops": 3}),
    "ponder": ({}, {"width": 8, "heads": 2, "loops": 3}),
    "top_recurrent": ({}, {"width": 8, "heads": 2, "loops": 3}),
    "feedback": ({}, {"width": 8, "heads": 2, "layers": 2}),
}


def model_of(variant: str) -> str:
    return variant if variant in registered() else "rnn"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The order of sums, and so their last bits, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def watch(tiny_dataset):
    """Return the validation loss, as an evaluation."""
    batch = batch_of(tiny_dataset.rows("valid").take(np.arange(60)))
    return lambda model: {"valid_loss": float(model.loss(batch))}


def contents(folder: Path) -> tuple[dict, dict]:
    """All that a checkpoint and its history hold, but for the seconds it took."""
    head, tensors = read_checkpoint(folder / "checkpoint.safetensors")
    assert head["history"] == read_json(folder / "history.json", "training")["history"]
    return {k: v for k, v in head.items() if k != "seconds"}, tensors


def assert_same_run(a: Path, b: Path) -> None:
    (head_a, tensors_a), (head_b, tensors_b) = contents(a), contents(b)
    assert head_a == head_b
    assert tensors_a.keys() == tensors_b.keys()
    for key, value in tensors_a.items():
        assert torch.equal(value, tensors_b[key]), key


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Stop(Exception):
    """What ends a run in the middle."""


def stop_after(monkeypatch, steps: int) -> None:
    """Let the next run take so many steps and no more."""
    advance, left = train_module._Run._advance, [steps]

    def limited(self, batch):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return advance(self, batch)

    monkeypatch.setattr(train_module._Run, "_advance", limited)


# Learning


def test_the_loss_falls(tiny_dataset, tmp_path, watch):
    settings = TrainSettings(steps=150, batch_tokens=1024, evaluations=5)
    trained = train("rnn", tiny_dataset, tmp_path, settings, {"width": 24}, watch)
    history = trained.history
    assert history["step"].tolist() == settings.evaluation_steps()
    assert history["valid_loss"].iloc[-1] < 0.7 * math.log(len(tiny_dataset.graph))
    assert history["valid_loss"].is_monotonic_decreasing
    assert (history["tokens"].diff()[1:] > 0).all() and trained.steps == 150
    tokens = int(history["tokens"].iloc[-1])
    assert trained.training_flops == training_flops(trained.model, tokens)
    assert 0 < trained.seconds < 600
    assert_frame_equal(load_history(tmp_path), history, check_like=True)


def test_own_input_costs_a_forward_more(tiny_dataset, tmp_path):
    settings = replace(SHORT, steps=3, own_input=0.1)
    trained = train("rnn", tiny_dataset, tmp_path, settings, SMALL)
    tokens = int(trained.history["tokens"].iloc[-1])
    assert trained.training_flops == training_flops(trained.model, tokens, 1.0)


def test_seeds_differ_and_repeat(tiny_dataset, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train("rnn", tiny_dataset, tmp_path / name, replace(SHORT, steps=5, seed=seed), SMALL)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    key = "model.inputs.embedding.weight"
    a, c = (contents(tmp_path / name)[1][key] for name in "ac")
    assert not torch.equal(a, c)


def test_load_trained_gives_the_same_logits(tiny_dataset, tmp_path):
    batch = batch_of(tiny_dataset.rows("test").take(np.arange(9)))
    for name, (changes, options) in VARIANTS.items():
        settings = replace(SHORT, steps=4, **changes)
        run = (model_of(name), tiny_dataset, tmp_path / name)
        trained = train(*run, settings, options).model.eval()
        loaded = load_trained(tmp_path / name, tiny_dataset.graph)
        assert not loaded.training and loaded.settings == trained.settings
        with torch.no_grad():
            assert torch.equal(loaded(batch), trained(batch))


# The same bits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("save_every", [1, 20])
def test_a_stopped_run_ends_with_the_same_bits(
    tiny_dataset, tmp_path, watch, monkeypatch, variant, save_every
):
    changes, options = VARIANTS[variant]
    settings = replace(SHORT, **changes)
    run = (model_of(variant), tiny_dataset)
    monkeypatch.setattr(train_module, "LOG_EVERY", save_every)
    whole = train(*run, tmp_path / "whole", settings, options, watch)
    stops = [1, 0, 3, 2, 7, 5] if save_every == 1 else [19, 20, 9, 0, 3]
    for steps in stops:
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_after(patch, steps)
            train(*run, tmp_path / "stopped", settings, options, watch)
        torch.rand(3)  # what happens in between is of no importance
    resumed = train(*run, tmp_path / "stopped", settings, options, watch)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert resumed.history.equals(whole.history)
    assert resumed.training_flops == whole.training_flops
    weights = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_a_finished_run_is_loaded(tiny_dataset, tmp_path, watch, monkeypatch):
    whole = train("rnn", tiny_dataset, tmp_path, SHORT, SMALL, watch)
    before = snapshot(tmp_path)
    stop_after(monkeypatch, 0)
    again = train("rnn", tiny_dataset, tmp_path, replace(SHORT, save_seconds=9), SMALL, watch)
    assert again.history.equals(whole.history) and again.seconds == whole.seconds
    assert snapshot(tmp_path) == before


def test_a_stop_between_the_two_files_loses_no_history(tiny_dataset, tmp_path, monkeypatch):
    settings = replace(SHORT, save_seconds=1000)  # saved once, at the end
    for module, name in ((train_module, "write_json"), (checkpoints, "save_file")):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(module, name, lambda *a, **k: (_ for _ in ()).throw(Stop))
            train("rnn", tiny_dataset, tmp_path, settings, SMALL)
    trained = train("rnn", tiny_dataset, tmp_path, settings, SMALL)
    assert_frame_equal(load_history(tmp_path), trained.history, check_like=True)
    assert not list(tmp_path.glob("*.part"))


# When it goes wrong


def poison(monkeypatch, at: int) -> None:
    """Spoil a weight after so many finished steps."""
    advance = train_module._Run._advance

    def spoilt(self, batch):
        if self.step == at:
            next(self.model.parameters()).data[0] = float("nan")
        return advance(self, batch)

    monkeypatch.setattr(train_module._Run, "_advance", spoilt)


def test_a_poisoned_run_stops_and_keeps_its_last_good_checkpoint(
    tiny_dataset, tmp_path, monkeypatch, watch
):
    settings = replace(SHORT, steps=60, evaluations=1)
    with monkeypatch.context() as patch:
        poison(patch, 27)
        with pytest.raises(Diverged, match="at step 40;.*good checkpoint is kept") as error:
            train("rnn", tiny_dataset, tmp_path / "gru", settings, SMALL, watch)
        assert "learning_rate (0.008)" in str(error.value)
    head, tensors = contents(tmp_path / "gru")
    assert head["step"] == 20 and all(t.isfinite().all() for t in tensors.values())
    assert all(
        p.isfinite().all() for p in load_trained(tmp_path / "gru", tiny_dataset.graph).parameters()
    )
    train("rnn", tiny_dataset, tmp_path / "gru", settings, SMALL, watch)
    train("rnn", tiny_dataset, tmp_path / "whole", settings, SMALL, watch)
    assert_same_run(tmp_path / "gru", tmp_path / "whole")


def test_an_absurd_learning_rate(tiny_dataset, tmp_path):
    settings = replace(SHORT, learning_rate=1e6, save_seconds=1000)
    with pytest.raises(Diverged, match=r"not finite.*none was saved.*learning_rate \(1e\+06\)"):
        train("rnn", tiny_dataset, tmp_path, settings, SMALL)
    assert not list(tmp_path.glob("checkpoint*"))


@pytest.fixture
def finished(tiny_dataset, tmp_path):
    folder = tmp_path / "gru"
    train("rnn", tiny_dataset, folder, replace(SHORT, steps=3), {"width": 4})
    return folder


def assert_refused(dataset, folder, settings=None, options=None) -> str:
    """Training and loading both refuse, name the file and touch nothing. Returns the message."""
    before = snapshot(folder)
    with pytest.raises(DataFileError) as error:
        train("rnn", dataset, folder, settings or replace(SHORT, steps=3), options or {"width": 4})
    assert "checkpoint.safetensors" in str(error.value) and "delete" in str(error.value)
    assert snapshot(folder) == before
    return str(error.value)


def test_foreign_files_are_refused(tiny_dataset, finished, tmp_path):
    file = finished / "checkpoint.safetensors"
    torch.save({"run": 1}, tmp_path / "torch.pt")
    safetensors = checkpoints.save_file
    safetensors({"x": torch.zeros(1)}, tmp_path / "plain")
    safetensors({"x": torch.zeros(1)}, tmp_path / "other", metadata={"run": "[1]"})
    foreign = [(tmp_path / n).read_bytes() for n in ("torch.pt", "plain", "other")]
    for spoilt in (b"\0" * 4096, b"{}", *foreign):
        file.write_bytes(spoilt)
        assert_refused(tiny_dataset, finished)


def test_other_settings_are_refused(tiny_dataset, finished):
    for changed in ({"steps": 4}, {"seed": 1}, {"learning_rate": 0.1}, {"hindsight": 0.5}):
        message = assert_refused(tiny_dataset, finished, replace(SHORT, **{"steps": 3} | changed))
        assert "other settings or data" in message
    assert "other settings" in assert_refused(tiny_dataset, finished, options={"width": 5})


def test_another_graph_is_refused(tiny_dataset, tennessee_two_way, finished, tmp_path):
    recipe = recipe_for(tennessee_two_way, train=200, valid=20, test=20)
    other = make_dataset(tennessee_two_way, recipe, tmp_path / "other")
    assert "other settings or data" in assert_refused(other, finished)
    with pytest.raises(DataFileError, match="gru was trained on another graph"):
        load_trained(finished, tennessee_two_way)


def test_missing_files_say_what_to_do(tiny_dataset, tmp_path):
    with pytest.raises(DataFileError, match=r"checkpoint.safetensors is missing: train"):
        load_trained(tmp_path / "nowhere", tiny_dataset.graph)
    with pytest.raises(DataFileError, match=r"history.json is missing: training makes it"):
        load_history(tmp_path / "nowhere")


# Schedules


def test_learning_rates():
    settings = TrainSettings(steps=400, learning_rate=0.5)
    rates = [settings.rate(step) for step in range(400)]
    assert rates[:20] == pytest.approx([0.5 * (i + 1) / 20 for i in range(20)])
    assert rates[20] == 0.5 == max(rates)
    assert rates[20 + 190] == pytest.approx(0.25, rel=0.02)
    assert 0 < rates[-1] < 0.0005 and rates[20:] == sorted(rates[20:], reverse=True)
    assert TrainSettings(steps=1).rate(0) == TrainSettings(steps=1).learning_rate


def test_the_optimizer_is_given_the_schedule(tiny_dataset, tmp_path, monkeypatch):
    used, advance = [], train_module._Run._advance

    def spy(self, batch):
        loss = advance(self, batch)
        used.append(self.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(train_module._Run, "_advance", spy)
    train("rnn", tiny_dataset, tmp_path, SHORT, SMALL)
    assert used == [SHORT.rate(step) for step in range(30)]


@hypothesis_settings(deadline=None)
@given(steps=st.integers(1, 10**6), evaluations=st.integers(0, 40))
def test_evaluation_steps(steps, evaluations):
    found = TrainSettings(steps=steps, evaluations=evaluations).evaluation_steps()
    assert found == sorted(set(found)) and found[-1] == steps and found[0] >= 1
    assert len(found) <= max(1, evaluations)
    if evaluations >= 2:
        assert found[0] == min(25, steps)
    if evaluations >= 3 and steps > 25 * 2 ** (evaluations - 1):
        ratios = np.array(found[1:]) / found[:-1]
        assert len(found) == evaluations and ratios.max() < 1.1 * ratios.min()


# What a batch is made of


def test_hindsight_batches_are_shortest_paths(tiny_dataset):
    graph = tiny_dataset.graph
    trees = shortest_path_trees(graph, np.arange(len(graph)))
    lengths = {}
    for share in (0.0, 0.5, 1.0):
        stream = iter(Batches(tiny_dataset, 4096, seed=2, hindsight=share))
        seen = []
        for batch in (next(stream) for _ in range(4)):
            for i, labels in enumerate(batch.labels):
                hops = int((labels != IGNORE).sum())
                path = [*batch.cities[i, :hops].tolist(), int(labels[hops - 1])]
                mm = graph.mm[graph.edge_index(path[:-1], path[1:])].sum()
                assert (path[0], path[-1]) == (batch.source[i], batch.target[i])
                assert mm == trees.mm[path[0], path[-1]]
                seen.append(hops)
        lengths[share] = np.mean(seen)
    assert lengths[1.0] < lengths[0.5] < lengths[0.0]


def test_own_input_swaps_inputs_and_nothing_else(tiny_dataset, tmp_path):
    model = train("rnn", tiny_dataset, tmp_path, replace(SHORT, steps=3), SMALL).model.eval()
    batch = batch_of(tiny_dataset.rows("test").take(np.arange(80)))
    inside = batch.labels != IGNORE
    predicted = model(batch).argmax(-1)
    for probability in (0.0, 0.4, 1.0):
        fed = own_input(model, batch, probability)
        for name in ("source", "target", "labels"):
            assert torch.equal(getattr(fed, name), getattr(batch, name))
        assert torch.equal(fed.cities[:, 0], batch.source)
        assert torch.equal(fed.cities[~inside], batch.cities[~inside])
        after = inside[:, 1:]
        own = fed.cities[:, 1:][after] == predicted[:, :-1][after]
        right = fed.cities[:, 1:][after] == batch.cities[:, 1:][after]
        assert (own | right).all()
        assert float((~right).float().mean()) == pytest.approx(probability, abs=0.1)


def test_rates_that_stay_and_then_fall():
    short, long = (TrainSettings(n, schedule="constant-decay") for n in (1_000, 4_000))
    assert (short.stable_steps, long.stable_steps) == (850, 3_400)
    assert [short.rate(i) for i in range(850)] == [long.rate(i) for i in range(850)]
    rates = [short.rate(i) / short.learning_rate for i in range(1_000)]
    assert rates[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert set(rates[100:850]) == {1.0}
    assert rates[850:] == pytest.approx([(150 - i) / 151 for i in range(150)])
    assert TrainSettings(1, schedule="constant-decay").rate(0) > 0
    assert short.evaluation_steps() == [25, 50, 100, 200, 400, 800, 1_000]
    assert replace(short, evaluations=1).evaluation_steps() == [1_000]
    with pytest.raises(ValueError, match="cosine or constant-decay"):
        TrainSettings(1, schedule="cosin")


BRANCHES = (60, 120, 200)


@pytest.fixture(scope="module")
def straight(tiny_dataset, tmp_path_factory):
    """Runs of three lengths, each trained from the start in a folder where it is alone."""
    return {
        steps: train(
            "rnn", tiny_dataset, tmp_path_factory.mktemp("alone") / "run", steady(steps), SMALL
        )
        for steps in BRANCHES
    }


def steady(steps: int) -> TrainSettings:
    return replace(SHORT, steps=steps, schedule="constant-decay", own_input=0.2, evaluations=4)


def same(one, other) -> None:
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.history.equals(other.history) and one.training_flops == other.training_flops


@pytest.mark.parametrize("order", [BRANCHES, BRANCHES[::-1], (120, 60, 200)])
def test_runs_of_several_lengths_share_a_trunk(
    straight, tiny_dataset, tmp_path, order, monkeypatch
):
    taken, advance = [], _Run._advance
    monkeypatch.setattr(_Run, "_advance", lambda run, batch: taken.append(1) or advance(run, batch))
    for steps in order:
        found = train("rnn", tiny_dataset, tmp_path / str(steps), steady(steps), SMALL)
        same(found, straight[steps])
    if order == BRANCHES:
        assert len(taken) == 170 + (9 + 18 + 30), "the longest stable part and every decay"
    (trunk,) = tmp_path.glob("stable-*")
    assert sorted(int(path.stem) for path in trunk.iterdir()) == [51, 102, 170]


def test_a_branch_that_is_stopped_goes_on_to_the_same_bits(
    straight, tiny_dataset, tmp_path, monkeypatch
):
    train("rnn", tiny_dataset, tmp_path / "short", steady(60), SMALL)
    for last in (80, 119):  # before and within the decay of the second run
        advance = _Run._advance

        def stopped(run, batch, last=last, advance=advance):
            if run.step == last:
                raise KeyboardInterrupt
            return advance(run, batch)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(_Run, "_advance", stopped)
            train("rnn", tiny_dataset, tmp_path / "long", steady(120), SMALL)
    same(train("rnn", tiny_dataset, tmp_path / "long", steady(120), SMALL), straight[120])


def test_other_settings_share_no_trunk(tiny_dataset, tmp_path):
    train("rnn", tiny_dataset, tmp_path / "a", steady(20), SMALL)
    for i, other in enumerate((replace(steady(40), seed=1), replace(steady(40), batch_tokens=300))):
        train("rnn", tiny_dataset, tmp_path / f"b{i}", other, SMALL)
    train("rnn", tiny_dataset, tmp_path / "c", steady(40), {"width": 4})
    assert len(list(tmp_path.glob("stable-*"))) == 4
