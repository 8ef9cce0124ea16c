"""Every registered model decodes as it trains and costs what it says; so can one's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import counted_flops

import studies.baselines.priors
import studies.recurrence
import studies.search  # noqa: F401  they register their networks
from citypaths.data.batches import Batch, batch_of
from citypaths.map.graph import build_graph
from citypaths.models import RNN, PathModel, base, build, register, registered
from citypaths.models.base import CityInput, Head
from citypaths.models.check import assert_consistent
from citypaths.models.rnn import RECURRENT
from citypaths.models.transformer import CONTEXT
from citypaths.training.checkpoints import load_trained
from citypaths.training.loop import TrainSettings, train, training_flops

WIDTH = 8
COORDINATES = ["none", "raw", "place_cells", "periodic", "fourier"]
RNN_GRID = [
    {},
    {"cell": "lstm"},
    {"endpoints": "prefix"},
    {"endpoints": "prefix", "softmaxes": 3},
    {"cell": "lstm", "endpoints": "prefix"},
    *({"coordinates": kind} for kind in COORDINATES[1:]),
    *({"coordinates": kind, "endpoints": "prefix"} for kind in COORDINATES[1:]),
    {"coordinates": "raw", "softmaxes": 3},
    {"softmaxes": 3},
    {"tied": True},
    {"tied": True, "softmaxes": 3, "coordinates": "raw", "cell": "lstm"},
    *({"recurrent": kind} for kind in ("identity", "chain", "identity_chain")),
    {"recurrent": "chain", "cell": "lstm"},
]
# One row a model and setting; a model registered later is tested with its defaults at least.
PLACED = ((0, "none"), (2, "raw"))
MODELS = [("rnn", options | {"width": WIDTH}) for options in RNN_GRID]
STACK = {"width": WIDTH, "heads": 2}
STACK_GRID = [
    {},
    {"coordinates": "raw"},
    {"coordinates": "place_cells", "heads": 1},
]
LOOPED_GRID = [
    {"loops": 3},
    {"loops": 3, "sampled": (2, 4), "backprop": 1, "noise": 0.5},
    {"loops": 3, "noise": 0.5},
]
MODELS += [("rnn", {"loops": 3, "endpoints": "prefix", "width": WIDTH})]
MODELS += [("memoryless", {"width": WIDTH, "layers": n, "coordinates": c}) for n, c in PLACED]
MODELS += [("transformer", {"layers": 2} | STACK | options) for options in STACK_GRID]
MODELS += [("looped", STACK | options) for options in STACK_GRID + LOOPED_GRID]
for name in ("top_recurrent", "act", "ponder"):
    MODELS += [(name, {"loops": 4} | STACK | options) for options in STACK_GRID]
FEEDBACK_GRID = [
    *STACK_GRID,
    {"loops": 3, "heads": 1},
    {"loops": 2},
]
MODELS += [("feedback", {"layers": 2} | STACK | options) for options in FEEDBACK_GRID]
PLANNER_GRID = [{}, {"tied": True}]
MODELS += [("planner", {"width": WIDTH} | options) for options in PLANNER_GRID]
MODELS += [(name, {}) for name in registered() if name not in dict(MODELS)]


def label(value) -> str:
    return "-".join(f"{v}" for v in value.values()) if isinstance(value, dict) else str(value)


@pytest.fixture(scope="module")
def graph(place):
    """Forty cities on a jagged grid, eastward."""
    random = np.random.default_rng(0)
    points = [(35 + 0.1 * i, -80 + 0.1 * j) for i in range(5) for j in range(8)]
    return build_graph(place(np.array(points) + random.uniform(-0.03, 0.03, (40, 2))), 20)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Six paths of one to seven hops; any ids will do for a model."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.tensor([7, 1, 4, 7, 2, 5])
    path = torch.randint(40, (6, 8), generator=draw)
    inside = torch.arange(7) < lengths[:, None]
    cities, labels = torch.where(inside, path[:, :-1], 0), torch.where(inside, path[:, 1:], -100)
    return Batch(path[:, 0], path[torch.arange(6), lengths], cities, labels)


def made(name, options, graph, seed=0) -> PathModel:
    torch.manual_seed(seed)
    return build(name, graph, **options)


# What the interface promises


@pytest.mark.parametrize("name, options", MODELS, ids=label)
def test_model_is_consistent(name, options, graph, batch):
    model = made(name, options, graph)
    assert_consistent(model, batch)
    assert model.training, "the checker leaves the mode as it was"
    assert model.settings == {"model": name} | options
    assert model.cities == len(graph)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name, options", MODELS, ids=label)
def test_flops_are_torchs(name, options, graph, batch):
    """Attention grows with each step: what a step costs is stated at a context of CONTEXT."""
    model, counts = made(name, options, graph).eval(), []
    prefix = not getattr(getattr(model, "inputs", None), "every_step", True)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=False), torch.no_grad():  # fused
        started = counted_flops(lambda: model.start(batch.source, batch.target))
        state = model.start(batch.source, batch.target)
        for city in batch.cities[:, :2].T:
            counts.append(counted_flops(lambda c=city, s=state: model.step(c, s)))
            _, state = model.step(city, state)
    growth = counts[1] - counts[0]
    assert counts[0] + growth * (CONTEXT - 1 - prefix) == 6 * model.flops_per_step()
    assert started + prefix * growth * (CONTEXT - 1) == 6 * model.flops_to_start


@pytest.mark.parametrize("name, options", MODELS, ids=label)
def test_gradients_of_two_forwards_add_up(name, options, graph, batch):
    model = made(name, options, graph).eval()
    half = Batch(*(getattr(batch, n)[:3] for n in ("source", "target", "cities", "labels")))
    grads, weights = [], list(model.parameters())
    for parts in ((batch,), (half,), (batch, half)):
        model.zero_grad()
        sum(model.loss(part) for part in parts).backward()
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in weights])
    for both, whole, part in zip(grads[2], grads[0], grads[1], strict=True):
        torch.testing.assert_close(both, whole + part, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name, options", MODELS, ids=label)
def test_parameters_count_and_their_use(name, options, graph, batch):
    model = made(name, options, graph)
    unique = {id(p): p.numel() for p in model.parameters()}
    assert model.parameters_count == sum(unique.values())
    model.loss(batch).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


@pytest.mark.parametrize("name, options", MODELS, ids=label)
def test_same_seed_same_weights(name, options, graph):
    a, b, c = (made(name, options, graph, seed) for seed in (0, 0, 1))
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


@pytest.mark.parametrize("name, options", MODELS, ids=label)
def test_the_query_matters_at_every_step(name, options, graph, batch):
    model = made(name, options, graph).eval()
    other = replace(batch, target=(batch.target + 1) % 40)
    with torch.no_grad():
        apart = (model(batch) - model(other)).abs().amax(-1)
    assert (apart[batch.labels >= 0] > 0).all()


def test_parameters_of_a_gru_by_hand(graph):
    v, w = len(graph), WIDTH
    cells = 2 * 3 * w * w + 2 * 3 * w
    assert made("rnn", {"width": w}, graph).parameters_count == (
        v * w + w * w + cells + w * v + v  # ids, goal, cells, head
    )
    tied = made("rnn", {"width": w, "tied": True}, graph)
    assert tied.parameters_count == v * w + w * w + cells + (w * w + w) + v
    assert tied.head.out.weight is tied.inputs.embedding.weight
    mixed = made("rnn", {"width": w, "softmaxes": 3}, graph)
    assert mixed.parameters_count == v * w + w * w + cells + (3 * w * w + 3 * w) + 3 * w + w * v + v


def test_training_costs_three_forwards(graph):
    model = made("rnn", {"width": WIDTH}, graph)
    assert training_flops(model, 10) == 30 * model.flops_per_step()
    assert training_flops(model, 10, 1.0) == 40 * model.flops_per_step()


def test_loss_is_nats_per_hop_without_padding(graph, batch):
    model = made("rnn", {"width": WIDTH}, graph).eval()
    real = batch.labels >= 0
    log_p = torch.log_softmax(model(batch), -1)[real]
    expected = -log_p[torch.arange(int(real.sum())), batch.labels[real]].mean()
    torch.testing.assert_close(model.loss(batch), expected)


# Names and settings


def test_unknown_names_and_settings(graph):
    with pytest.raises(KeyError, match=r"no model 'transfomer'; registered: .*rnn"):
        build("transfomer", graph)
    with pytest.raises(TypeError, match="witdh"):
        build("rnn", graph, witdh=3)
    for wrong in (
        {"cell": "rnn"},
        {"endpoints": "suffix"},
        {"coordinates": "polar"},
        {"recurrent": "random"},
    ):
        with pytest.raises(ValueError):
            build("rnn", graph, width=4, **wrong)
    assert "rnn" in registered() and registered() == sorted(registered())


def test_only_some_inputs_see_the_goal(graph):
    ids, goal = torch.tensor([3, 4]), torch.ones(2, WIDTH)
    torch.manual_seed(0)
    for endpoints, added in (("every_step", 1.0), ("prefix", 0.0)):
        inputs = CityInput(graph, WIDTH, endpoints=endpoints)
        assert torch.allclose(inputs(ids, goal) - inputs.city(ids), added * goal)


# Initial recurrence and the rank of the head


def test_initial_recurrence_of_each_gate(graph):
    for cell, gates in (("gru", 3), ("lstm", 4)):
        model = made("rnn", {"cell": cell, "width": WIDTH, "recurrent": "chain"}, graph)
        blocks = model.rnn.weight_hh_l0.detach().split(WIDTH)
        assert len(blocks) == gates
        for i, block in enumerate(blocks):
            if i == 2:
                assert torch.equal(block, RECURRENT["chain"](WIDTH))
            else:
                torch.testing.assert_close(block @ block.T, torch.eye(WIDTH))
        total = model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0
        forget = total.detach().split(WIDTH)
        assert all((b == (cell == "lstm" and i == 1)).all() for i, b in enumerate(forget))


def test_a_mixture_of_softmaxes_breaks_the_rank_bound():
    torch.manual_seed(0)
    states = 3 * torch.randn(60, 4)
    ranks = {}
    for softmaxes in (1, 3):
        head = Head(4, 50, softmaxes)
        nn.init.normal_(head.out.weight)
        with torch.no_grad():
            log_p = torch.log_softmax(head(states), -1).double()
        assert torch.allclose(log_p.exp().sum(-1), torch.ones(60, dtype=torch.float64), atol=1e-5)
        ranks[softmaxes] = int(torch.linalg.matrix_rank(log_p, rtol=1e-5))
    assert ranks[1] <= 4 + 1 < ranks[3]


def test_a_mixture_is_the_weighted_sum_of_its_softmaxes():
    torch.manual_seed(0)
    head, states = Head(4, 9, 3), torch.randn(5, 4)
    weights = torch.softmax(head.gate(states), -1)
    latent = torch.tanh(head.project(states)).view(5, 3, 4)
    expected = (weights[..., None] * torch.softmax(head.out(latent), -1)).sum(1)
    torch.testing.assert_close(head(states).exp(), expected)


# A model of one's own


class Bigram(PathModel):
    """The next city from this city and the target alone: a user's smallest model."""

    def __init__(self, graph, width: int = 16) -> None:
        super().__init__()
        self.cities, self.width = len(graph), width
        self.city, self.goal = (nn.Embedding(len(graph), width) for _ in range(2))
        self.out = nn.Linear(width, len(graph))

    def forward(self, batch, loops=None):
        hidden = self.city(batch.cities) + self.goal(batch.target)[:, None]
        return self.out(torch.relu(hidden))

    def start(self, source, target, loops=None):
        return target

    def step(self, city, state):
        return self.out(torch.relu(self.city(city) + self.goal(state))), state

    def reorder(self, state, index):
        return state[index]

    def flops_per_step(self, loops=None):
        return 2 * self.width * self.cities


class LooksAhead(Bigram):
    def forward(self, batch, loops=None):
        logits = super().forward(batch)
        return logits + 0.1 * logits.roll(-1, 1)


class ReadsLabels(Bigram):
    def forward(self, batch, loops=None):
        return super().forward(batch) + batch.labels.clamp_min(0)[..., None]


class StepsElsewhere(Bigram):
    def step(self, city, state):
        logits, state = super().step(city, state)
        return logits + 0.01, state


class ForgetsToReorder(Bigram):
    def reorder(self, state, index):
        return state[: len(index)] if len(index) <= len(state) else state.repeat(2)[: len(index)]


class KeepsOneState(Bigram):
    """Writes the new state over the old one: beams would share it."""

    def start(self, source, target, loops=None):
        return {"target": target, "steps": torch.zeros_like(target)}

    def forward(self, batch, loops=None):
        steps = torch.arange(batch.cities.shape[1])[:, None]
        return super().forward(batch) + steps

    def step(self, city, state):
        logits = super().step(city, state["target"])[0] + state["steps"][:, None]
        state["steps"] += 1
        return logits, state

    def reorder(self, state, index):
        return {key: value[index] for key, value in state.items()}


class WrongShape(Bigram):
    def forward(self, batch, loops=None):
        return super().forward(batch)[..., :-1]


@pytest.fixture
def own_model(monkeypatch):
    """Register `Bigram` for one test."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    register("bigram")(Bigram)
    return "bigram"


@pytest.mark.parametrize(
    "broken, message",
    [
        (LooksAhead, "looks ahead"),
        (ReadsLabels, "looks ahead"),
        (StepsElsewhere, "step 1: logits differ from the teacher-forced ones"),
        (ForgetsToReorder, r"reorder before step 1: rows \[5, 4"),
        (KeepsOneState, "reorder before step 1"),
        (WrongShape, r"forward: logits \(6, 7, 39\), not \(6, 7, 40\)"),
    ],
)
def test_the_checker_finds(broken, message, graph, batch):
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        assert_consistent(broken(graph), batch)


def test_the_checker_finds_logits_that_are_no_numbers(graph, batch):
    model = Bigram(graph)
    nn.init.constant_(model.out.bias, float("nan"))
    with pytest.raises(AssertionError, match="not finite"):
        assert_consistent(model, batch)


def test_own_model_passes_trains_and_loads(own_model, tiny_dataset, tmp_path):
    graph, rows = tiny_dataset.graph, tiny_dataset.rows("valid")
    batch = batch_of(rows.take(np.arange(20)))
    assert own_model in registered()
    assert_consistent(build(own_model, graph), batch)
    settings = TrainSettings(steps=60, batch_tokens=512, evaluations=3)

    def evaluate(model) -> dict[str, float]:
        return {"valid_loss": float(model.loss(batch))}

    trained = train(own_model, tiny_dataset, tmp_path, settings, {"width": 12}, evaluate)
    losses = trained.history["valid_loss"].tolist()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.1
    again = load_trained(tmp_path, graph)
    assert isinstance(again, Bigram) and again.width == 12
    with torch.no_grad():
        assert torch.equal(again(batch), trained.model.eval()(batch))


def test_a_model_need_not_be_a_class(graph, batch, monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    register("small gru")(lambda graph: RNN(graph, width=4))
    assert_consistent(build("small gru", graph), batch)
