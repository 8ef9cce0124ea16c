"""Judges of whole paths, likelihoods as energies, and walking backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of, batch_of_paths
from citypaths.decoding import LOST, Likelihood, PathLength, Sum
from citypaths.files import data_dir
from citypaths.judging.queries import Queries
from citypaths.map.paths import Paths
from citypaths.training.checkpoints import load_trained
from citypaths.training.loop import TrainSettings, train
from studies.search.energies import Judge, Reverse, _shared_hops, reversed_batch

MODEL = {"cell": "gru", "width": 16, "tied": True}
CONTROLS = [{}, {"blind": True}, {"shuffled": True}, {"kind": "whole"}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project's folder for this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CITYPATHS_HOME", str(tmp_path_factory.mktemp("home")))
        yield data_dir()


@pytest.fixture(scope="module")
def generator(tiny_dataset, home):
    return train("rnn", tiny_dataset, home / "generator", TrainSettings(60), MODEL).model.eval()


@pytest.fixture(params=CONTROLS, ids=lambda c: "-".join(map(str, c.values())) or "plain")
def judge(request, tennessee, generator):
    torch.manual_seed(1)
    return Judge(tennessee, generator="generator", width=8, **request.param).eval()


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset, "valid").first(40)


def ids_of(paths: Paths) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.as_tensor(paths.padded()), torch.as_tensor(paths.lengths)


# Judges


def test_energies_do_not_depend_on_the_batch(judge, queries):
    paths, (source, target) = queries.rows.paths, (queries.rows.source, queries.rows.target)
    energies = judge.score(source, target, paths)
    for i in range(0, len(paths), 7):
        alone = judge.score(source[i : i + 1], target[i : i + 1], paths.take(np.array([i])))
        assert alone[0] == pytest.approx(energies[i], rel=1e-5)


def test_both_ways_are_read_as_by_hand(tennessee, generator, queries):
    """The plain judge against torch's own bidirectional GRU, path by path."""
    torch.manual_seed(2)
    judge = Judge(tennessee, generator="generator", width=8).eval()
    both = torch.nn.GRU(8, 8, batch_first=True, bidirectional=True)
    weights = {name: w for name, w in judge.onward.named_parameters()}
    weights |= {f"{name}_reverse": w for name, w in judge.back.named_parameters()}
    both.load_state_dict(weights)
    for path in list(queries.rows.paths)[:6]:
        ids = torch.as_tensor(path.astype(np.int64))[None]
        inputs = judge.inputs.city(ids) + judge.inputs.goal(ids[:, -1])[:, None]
        logits = judge.head(judge.hidden(both(inputs)[0]).relu())[0, 1:, 0]
        energy = -torch.nn.functional.logsigmoid(logits).sum().item()
        single = Paths.from_lists([path])
        assert judge.score(path[:1], path[-1:], single)[0] == pytest.approx(energy, rel=1e-4)


def test_what_leads_elsewhere_is_lost(judge, queries):
    source, target = queries.rows.source, queries.rows.target
    energies = judge.score(np.roll(source, 1), target, queries.rows.paths)
    elsewhere = np.roll(source, 1) != source
    assert (energies[elsewhere] == LOST).all() and (energies[~elsewhere] < LOST).all()
    nothing = Paths.from_lists([[], [3]])
    assert judge.score(np.array([3, 3]), np.array([3, 3]), nothing).tolist() == [LOST, 0.0]


def test_a_blind_judge_sees_no_query(tennessee, generator):
    judge = Judge(tennessee, generator="generator", width=8, blind=True).eval()
    paths = Paths.from_lists([[1, 5, 6, 2], [3, 5, 6, 4], [3, 6, 5, 4]])
    one, same, other = judge.score(np.array([1, 3, 3]), np.array([2, 4, 4]), paths)
    assert one == same != other


def test_a_shuffled_judge_sees_no_order(tennessee, generator):
    judge = Judge(tennessee, generator="generator", width=8, shuffled=True).eval()
    paths = Paths.from_lists([[1, 5, 6, 7, 2], [1, 7, 5, 6, 2], [1, 7, 5, 8, 2]])
    one, same, other = judge.score(np.full(3, 1), np.full(3, 2), paths)
    assert one == pytest.approx(same, abs=1e-6) and abs(one - other) > 1e-6
    ids, lengths = ids_of(paths)
    by_place = judge(ids, lengths).detach().numpy()
    assert by_place[0, 1] == pytest.approx(by_place[1, 2], abs=1e-6)  # city 5 in both


def test_cities_entered_by_a_hop_of_the_true_path():
    truth = torch.tensor([[1, 2, 3, 4, -1]])
    ids = torch.tensor([[[1, 2, 3, 4, -1], [1, 3, 4, -1, -1], [1, 2, 4, -1, -1]]])
    expected = [[1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert _shared_hops(ids, truth)[0].tolist() == expected


def test_the_hardest_attempt_is_kept(tennessee, generator):
    judge = Judge(tennessee, generator="generator", width=8).eval()
    paths = Paths.from_lists([[1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 2]])
    ids, sizes = (x[None] for x in ids_of(paths))
    energies = judge.score(np.full(3, 1), np.full(3, 2), paths)
    for usable in ([True, True, True], [True, False, True], [False, False, True]):
        kept, size, fit = judge._hardest(ids, sizes, torch.tensor([usable]))
        best = int(np.where(usable, energies, np.inf).argmin())
        assert fit.all() and kept[0, 0, : size[0, 0]].tolist() == paths[best].tolist()
    assert not judge._hardest(ids, sizes, torch.zeros(1, 3, dtype=torch.bool))[2].any()


def test_gradients_reach_all_that_judges_and_not_the_generator(judge, tiny_dataset):
    batch = batch_of(tiny_dataset.rows("valid").take(np.arange(60)))
    torch.manual_seed(0)
    loss = judge.train().loss(batch)
    loss.backward()
    assert loss.isfinite()
    unused = {"inputs.as_target.weight"} if judge.blind else {"masked"}
    for name, weight in judge.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        assert reached == (name not in unused), name
    assert all(p.grad is None for p in judge.generator[0].parameters())
    assert judge.parameters_count == sum(p.numel() for p in judge.parameters())


def test_a_trained_judge_tells_paths_from_attempts(
    tiny_dataset, tennessee, generator, queries, home
):
    """It gives most shortest paths less energy than a wrong attempt, and loads without losing."""
    settings = {"generator": "generator", "width": 32, "kind": "whole", "attempts": 4}
    recipe = TrainSettings(120, 512, 1.6e-2, evaluations=1)
    trained = train("judge", tiny_dataset, home / "judge", recipe, settings)
    rows = queries.rows
    drawn = decoding.draw(generator, rows.source, rows.target, queries.max_hops, 32, seed=1)
    ends = np.array([p[-1] for p in drawn.paths])
    km = PathLength(tennessee).score(
        rows.source[drawn.query], rows.target[drawn.query], drawn.paths
    )
    wrong = (ends == rows.target[drawn.query]) & (km > 1.05 * rows.km[drawn.query])
    of = drawn.query[wrong]
    assert len(of) > 20
    bad = trained.model.eval().score(rows.source[of], rows.target[of], drawn.paths.take(wrong))
    good = trained.model.score(rows.source, rows.target, rows.paths)[of]
    assert (good < bad).mean() > 0.8
    loaded = load_trained(home / "judge", tennessee)
    np.testing.assert_array_equal(loaded.score(rows.source, rows.target, rows.paths)[of], good)
    assert trained.training_flops > 0


def test_operations_of_judging(judge, queries):
    paths = queries.rows.paths
    per_city = judge.flops_per_step()
    # two GRUs of width 8 (3 gates, two matrices), a layer from 16 to 8, a head from 8 to 1
    assert per_city == judge.inputs.flops + 2 * (2 * 3 * 2 * 8 * 8) + 2 * 16 * 8 + 2 * 8
    goal = 0 if judge.blind else judge.inputs.goal_flops
    np.testing.assert_array_equal(judge.flops(paths), paths.lengths * per_city + goal)
    assert not judge.lookups(paths).any()


@pytest.mark.parametrize("bad", [{"kind": "edges"}, {"attempts": 0}])
def test_judges_out_of_range(tennessee, bad):
    with pytest.raises(ValueError, match="a judge of cities or whole"):
        Judge(tennessee, **bad)


# Likelihoods


def test_likelihood_is_that_of_drawing(generator, queries):
    rows = queries.rows
    drawn = decoding.draw(generator, rows.source, rows.target, queries.max_hops, 16, seed=3)
    ends = np.array([p[-1] for p in drawn.paths])
    energies = Likelihood(generator).score(
        rows.source[drawn.query], rows.target[drawn.query], drawn.paths
    )
    arrived = (ends == rows.target[drawn.query]) & (drawn.paths.lengths > 1)
    assert 20 < arrived.sum() < len(arrived)
    np.testing.assert_allclose(energies[arrived], -drawn.log_p[arrived], rtol=1e-4)
    assert (energies[~arrived] == LOST).all()


def test_a_batch_turned_twice_is_itself(queries):
    batch = batch_of(queries.rows)
    turned = reversed_batch(batch)
    again = reversed_batch(turned)
    for name in ("source", "target", "cities", "labels"):
        torch.testing.assert_close(getattr(again, name), getattr(batch, name))
    backwards = Paths.from_lists([p[::-1] for p in queries.rows.paths])
    expected = batch_of_paths(backwards)
    for name in ("source", "target", "cities", "labels"):
        torch.testing.assert_close(getattr(turned, name), getattr(expected, name))


def test_reverse_scores_the_path_backwards(tennessee, queries):
    torch.manual_seed(4)
    reverse = Reverse(tennessee, **MODEL).eval()
    rows = queries.rows
    backwards = Paths.from_lists([p[::-1] for p in rows.paths])
    expected = Likelihood(reverse).score(rows.target, rows.source, backwards)
    np.testing.assert_allclose(reverse.score(rows.source, rows.target, rows.paths), expected)
    mean = reverse.loss(batch_of(rows)).item()
    assert mean == pytest.approx(expected.sum() / rows.hops.sum(), rel=1e-4)


def test_a_trained_reverse_model_walks_backwards(tiny_dataset, tennessee, queries, home):
    trained = train("reverse", tiny_dataset, home / "reverse", TrainSettings(60), MODEL)
    rows = queries.rows
    known = trained.model.eval().score(rows.source, rows.target, rows.paths).mean()
    torch.manual_seed(5)
    untrained = Reverse(tennessee, **MODEL).score(rows.source, rows.target, rows.paths).mean()
    assert known < 0.8 * untrained
    loaded = load_trained(home / "reverse", tennessee)
    assert loaded.score(rows.source, rows.target, rows.paths).mean() == pytest.approx(known)


def test_a_sum_adds_energies_and_costs(generator, tennessee, queries):
    reverse = Reverse(tennessee, **MODEL).eval()
    own, rows = Likelihood(generator), queries.rows
    both = Sum(own, reverse, weights=(1.0, 0.5))
    asked = (rows.source, rows.target, rows.paths)
    np.testing.assert_allclose(both.score(*asked), own.score(*asked) + 0.5 * reverse.score(*asked))
    costs = own.flops(rows.paths) + reverse.flops(rows.paths)
    np.testing.assert_array_equal(both.flops(rows.paths), costs)
    looked = Sum(own, PathLength(tennessee)).lookups(rows.paths)
    np.testing.assert_array_equal(looked, PathLength(tennessee).lookups(rows.paths))
    with pytest.raises(ValueError, match="2 scorers but 1 weights"):
        Sum(own, reverse, weights=(1.0,))
