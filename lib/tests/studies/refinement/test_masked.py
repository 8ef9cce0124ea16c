"""The masked path model and its rounds: against plain loops, hand counts and torch's own counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from toys import counted_flops, lists, next_cities

from citypaths.data.batches import batch_of
from citypaths.judging.metrics import judge
from citypaths.models import build, registered
from citypaths.training import loop as train_module
from citypaths.training.checkpoints import load_trained
from citypaths.training.loop import TrainSettings, train
from studies.refinement import masked, refine_masked
from studies.refinement.masked import Masked, lowest, read_out

SMALL = {"width": 16, "layers": 2, "slots": 48}


@pytest.fixture(scope="module")
def model(tennessee):
    torch.manual_seed(5)
    return build("masked", tennessee, **SMALL).eval()


@pytest.fixture(scope="module")
def rows(tiny_dataset):
    rows = tiny_dataset.rows("test")
    return rows.take(np.arange(0, len(rows), 16))


def filled(model, count: int = 3, hops: int = 9):
    """Ends, slots of random cities and hops for a few rows."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.cities, (count, 2 + hops), generator=draw)
    return ids[:, 0], ids[:, 1], ids[:, 2:], torch.full((count,), hops)


# The network


def test_every_slot_sees_every_other_and_both_ends(model):
    source, target, tokens, hops = filled(model)
    with torch.no_grad():
        before = model(source, target, tokens, hops)
        for place in (0, 4, tokens.shape[1] - 1):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1) % model.cities
            moved = (model(source, target, changed, hops) - before).abs().amax(-1)
            assert (moved > 1e-6).all(), "a slot does not see an earlier or a later one"
        for ends in ((source + 1, target), (source, target + 1)):
            other = [end % model.cities for end in ends]
            assert ((model(*other, tokens, hops) - before).abs().amax(-1) > 1e-6).all()


def by_loops(model, source: int, target: int, tokens: list[int]) -> np.ndarray:
    """The logits [S, V] of one path, its attention summed slot by slot."""
    city = model.inputs.embedding.weight
    hops, heads = len(tokens), model.layers[0].attention.heads
    draft = model.straight(
        *(torch.tensor([x]) for x in (source, target)), hops + 1, torch.tensor([hops])
    )
    known = city[target] @ model.inputs.as_target.weight.T + city[source] @ model.as_source.weight.T
    x = []
    for t, token in enumerate([source, *tokens]):
        own = model.unknown if token == model.mask else city[token]
        place = model.from_start.weight[t] + model.from_end.weight[hops - t]
        x.append(own + known + place + city[draft[0, t]] @ model.as_draft.weight.T)
    for block in model.layers:
        attention = block.attention
        normed = [block.norm_attention(v) for v in x]
        parts = [attention.qkv(v).view(3, heads, -1) for v in normed]
        cos, sin = attention.rotary.known
        turned = []
        for t, part in enumerate(parts):
            a, b = part[:2].chunk(2, -1)
            turned.append(torch.cat([a * cos[t] - b * sin[t], a * sin[t] + b * cos[t]], -1))
        for t in range(len(x)):
            mixed = []
            for h in range(heads):
                near = [turned[t][0, h] @ turned[u][1, h] for u in range(len(x))]
                weight = (torch.stack(near) / math.sqrt(parts[0].shape[-1])).softmax(0)
                mixed.append(sum(weight[u] * parts[u][2, h] for u in range(len(x))))
            x[t] = x[t] + attention.out(torch.cat(mixed))
        x = [v + block.down(F.relu(block.up(block.norm_feed(v)))) for v in x]
    return torch.stack([model.head(model.norm(v)) for v in x[1:]]).detach().numpy()


def test_the_network_is_what_plain_loops_compute(model):
    source, target, tokens, _ = filled(model, 2, 5)
    tokens[0, 1:3] = tokens[1, 2] = model.mask
    hops = torch.tensor([5, 3])
    with torch.no_grad():
        together = model(source, target, tokens, hops).numpy()
    for i, count in enumerate(hops.tolist()):
        alone = by_loops(model, int(source[i]), int(target[i]), tokens[i, :count].tolist())
        np.testing.assert_allclose(together[i, :count], alone, atol=2e-5)


def test_operations(tennessee):
    model = build("masked", tennessee, **SMALL).eval()
    source, target, tokens, hops = filled(model, count=1)
    counted = counted_flops(lambda: model(source, target, tokens, hops))
    assert counted == model.flops_per_pass(np.array([9]))[0]
    counted = counted_flops(lambda: model.length_logits(source, target))
    assert counted == model.length_flops
    assert model.flops_per_step() == model.flops_per_pass(np.array([48]))[0] // 48
    assert "masked" not in registered()


def test_the_draft_is_the_city_nearest_to_the_line(model):
    source, target, _, hops = filled(model)
    draft = model.straight(source, target, 10, hops)
    place = model.place.double()
    for i in range(3):
        for t in range(10):
            share = t / int(hops[i])
            point = (1 - share) * place[source[i]] + share * place[target[i]]
            far = (place - point).norm(dim=1)
            assert far[draft[i, t]] <= far.min() + 1e-4
    assert torch.equal(draft[:, 0], source) and torch.equal(draft[:, 9], target)


# The loss


def test_only_hidden_slots_and_lengths_count(model, rows):
    batch = batch_of(rows)
    hops = torch.as_tensor(rows.hops).long()
    hidden = model.hide(hops, batch.labels.shape[1])
    assert hidden.any() and (hidden <= model.hidable(hops, hidden.shape[1])).all()
    with torch.no_grad():
        terms, whole = [], []
        for i, path in enumerate(rows.paths):
            a, b, way = int(path[0]), int(path[-1]), path[1:].tolist()
            tokens = [model.mask if hidden[i, t] else city for t, city in enumerate(way)]
            ends = torch.tensor([a]), torch.tensor([b])
            log_p = model(*ends, torch.tensor([tokens]), torch.tensor([len(way)])).log_softmax(-1)
            terms += [float(log_p[0, t, way[t]]) for t in range(len(way)) if hidden[i, t]]
            whole.append(float(model.length_logits(*ends).log_softmax(-1)[0, len(way) - 1]))
        start, end, length = model.parts(batch)
        part = model.length_logits(start, end).log_softmax(-1)[
            torch.arange(len(length)), length - 1
        ]
        expected = -np.mean(terms) - np.mean(whole) - float(part.mean())
        assert float(model.loss(batch)) == pytest.approx(expected, rel=1e-5)


def test_parts_begin_at_every_hop(model, rows):
    start, end, length = (x.tolist() for x in model.parts(batch_of(rows)))
    at = 0
    for path in map(list, rows.paths):
        for t in range(len(path) - 1):
            assert start[at] == path[t] and 1 <= length[at] < len(path) - t
            assert end[at] == path[t + length[at]]
            assert t or end[at] == path[-1], "the first part is the whole path"
            at += 1
    assert at == len(start)
    assert len(set(length)) > 5


def test_hidden_shares_and_single_hops(model, rows):
    model.train()
    torch.manual_seed(0)
    hops = torch.full((4000,), 21)
    share = model.hide(hops, 21).sum(1) / 20
    model.eval()
    assert share.min() > 0 and share.max() == 1
    assert float(share.mean()) == pytest.approx(2 / math.pi + 0.025, abs=0.02)
    short = rows.take(np.flatnonzero(rows.hops == rows.hops.min()))
    assert rows.hops.min() == 1
    assert model.loss(batch_of(short)).isfinite()


@torch.no_grad()
def test_an_evaluation_repeats_and_draws_nothing(model, rows):
    batch, state = batch_of(rows), torch.get_rng_state()
    assert float(model.loss(batch)) == float(model.loss(batch))
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert float(model.loss(batch)) != float(model.loss(batch))
    model.eval()


@given(
    values=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    among=st.lists(st.booleans(), min_size=8, max_size=8),
    count=st.integers(0, 9),
)
def test_lowest_is_a_sort(values, among, count):
    among = among[: len(values)]
    found = lowest(torch.tensor([values]).float(), torch.tensor([among]), torch.tensor([[count]]))
    open_to = sorted((v, i) for i, v in enumerate(values) if among[i])
    assert found[0].nonzero()[:, 0].tolist() == sorted(i for _, i in open_to[:count])


# The rounds


class Oracle(Masked):
    """Knows the shortest paths; unsure and wrong about the middle while every slot is hidden."""

    def __init__(self, graph, doubtful: bool = False) -> None:
        super().__init__(graph, slots=48, width=8, layers=1)
        self.onward, self.doubtful = next_cities(graph), doubtful

    def path(self, a: int, b: int) -> list[int]:
        way = [a]
        while way[-1] != b:
            way.append(int(self.onward[b, way[-1]]))
        return way

    def length_logits(self, source, target):
        ends = zip(source.tolist(), target.tolist(), strict=True)
        hops = torch.tensor([len(self.path(a, b)) - 1 for a, b in ends])
        return 9.0 * F.one_hot(hops - 1, self.slots)

    def forward(self, source, target, tokens, hops):
        logits = torch.zeros(*tokens.shape, self.cities)
        for i, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
            for t, city in enumerate(self.path(a, b)[1:]):
                logits[i, t, city] = 9.0
            if self.doubtful and (tokens[i, : hops[i]] == self.mask).sum() == hops[i] - 1 > 1:
                logits[i, (hops[i] - 1) // 2] = F.one_hot(source[i], self.cities).float()
        return logits


@pytest.mark.parametrize("doubtful", [False, True])
def test_an_oracle_needs_one_round(tennessee, rows, doubtful):
    oracle = Oracle(tennessee, doubtful)
    found = refine_masked(oracle, rows.source, rows.target, 60, rounds=1, lengths=1)
    optimal = [
        judge(tennessee, rows.source, rows.target, rows.km, f.paths)["optimal"].mean()
        for f in found
    ]
    assert optimal[1] == 1 and (optimal[0] < 0.3 if doubtful else optimal[0] == 1)


def plain(
    model, source: int, target: int, max_hops: int, rounds: int, lengths: int
) -> list[list[int]]:
    """Mask-predict, one query and length after the other, slots in lists: the path each round."""
    ends = torch.tensor([source]), torch.tensor([target])
    log_p = model.length_logits(*ends)[0].detach().log_softmax(-1)[:max_hops]
    best = [(math.inf, [])] * (rounds + 1)
    for hops in (1 + log_p.argsort(descending=True)[:lengths]).tolist():
        free, slots = list(range(hops - 1)), [model.mask] * (hops - 1) + [target]
        sure = [0.0] * hops
        for done in range(rounds + 1):
            count = math.ceil((1 - done / (rounds + 1)) * len(free) - 1e-6)
            hidden = sorted(free, key=lambda i: sure[i])[:count]
            tokens = torch.tensor([[model.mask if i in hidden else c for i, c in enumerate(slots)]])
            guess = model(*ends, tokens, torch.tensor([hops]))[0].detach().log_softmax(-1)
            for i in hidden:
                sure[i], slots[i] = float(guess[i].max()), int(guess[i].argmax())
            energy = -sum(sure) - float(log_p[hops - 1])
            best[done] = min(best[done], (energy, list(slots)))
    out = []
    for _, slots in best:
        path = [source]
        for city in slots:
            if path[-1] == target or len(path) > max_hops:
                break
            path += [city] if city != path[-1] else []
        out.append(path)
    return out


@pytest.mark.parametrize("lengths", [1, 4])
def test_rounds_are_plain_mask_predict(model, rows, lengths):
    """Of several lengths the most probable path is taken, its length counted in."""
    found = refine_masked(model, rows.source, rows.target, 20, rounds=3, lengths=lengths)
    guess = refine_masked(model, rows.source, rows.target, 20, rounds=0, lengths=lengths)
    assert len(found) == 4 and len(guess) == 1 and lists(guess[0]) == lists(found[0])
    for i, (a, b) in enumerate(zip(rows.source.tolist(), rows.target.tolist(), strict=True)):
        assert [lists(f)[i] for f in found] == plain(model, a, b, 20, 3, lengths)


@pytest.mark.parametrize("rounds, lengths", [(3, 1), (2, 3)])
def test_rounds_cost_their_passes_and_are_the_same_in_any_batch(
    model, rows, rounds, lengths, monkeypatch
):
    args, plan = (model, rows.source, rows.target, 15), {"rounds": rounds, "lengths": lengths}
    found = refine_masked(*args, **plan)
    assert len(found) == 1 + rounds
    costs = np.array([f.flops for f in found])
    per_pass = (costs[1] - costs[0])[None]
    passes = np.arange(1, rounds + 2)
    assert np.allclose(costs, model.length_flops + per_pass * passes[:, None])
    for f in found:
        for path, a, b in zip(lists(f), rows.source, rows.target, strict=True):
            assert path[0] == a and path[-1] == b and len(path) <= 16
    monkeypatch.setattr(masked, "BATCH", 7)
    again = refine_masked(*args, **plan)
    alone = refine_masked(model, rows.source[:1], rows.target[:1], 15, **plan)
    for a, b, c in zip(found, again, alone, strict=True):
        assert lists(a) == lists(b) and np.array_equal(a.flops, b.flops)
        assert lists(a)[:1] == lists(c) and a.flops[0] == c.flops[0]


def test_one_pass_costs_what_torch_counts(model, rows):
    for i in range(0, len(rows), 9):
        args = model, rows.source[i : i + 1], rows.target[i : i + 1], 24
        found = []
        counted = counted_flops(
            lambda: found.extend(refine_masked(*args, rounds=1, lengths=1))  # noqa: B023
        )
        assert counted == found[-1].flops[0]


def test_read_out_by_hand():
    tokens = np.array([[1, 2, 3, 4], [1, 1, 2, 9], [9, 1, 2, 9], [1, 2, 9, 90]])
    hops = np.array([4, 4, 4, 3])
    found = read_out(np.zeros(4, int), np.full(4, 9), hops, tokens, 9)
    expected = [[0, 1, 2, 3, 4], [0, 1, 2, 9], [0, 9], [0, 1, 2, 9]]
    assert [path.tolist() for path in found] == expected
    cut = read_out(np.zeros(4, int), np.full(4, 9), hops, tokens, 2)
    assert [path.tolist() for path in cut] == [path[:3] for path in expected]


def test_no_hop_costs_nothing_and_no_query_gives_none(model):
    found = refine_masked(model, [3, 3], [3, 8], 9, rounds=1, lengths=1)
    assert lists(found[1])[0] == [3] and found[1].flops[0] == 0 < found[1].flops[1]
    none = refine_masked(model, [], [], 9, rounds=1, lengths=1)
    assert [len(f.paths) for f in none] == [0, 0]


def test_malformed_input(model, tennessee, rows):
    plan = {"rounds": 1, "lengths": 1}
    for wrong in ({"rounds": -1}, {"lengths": 0}):
        with pytest.raises(ValueError, match="rounds of 0 or more"):
            refine_masked(model, [0], [1], 5, **plan | wrong)
    with pytest.raises(ValueError, match="max_hops is at least 1"):
        refine_masked(model, [0], [1], 0, **plan)
    with pytest.raises(ValueError, match="2 sources but 1 targets"):
        refine_masked(model, [0, 1], [1], 5, **plan)
    with pytest.raises(ValueError, match="at least one slot"):
        build("masked", tennessee, slots=0)
    tight = build("masked", tennessee, **SMALL | {"slots": 3})
    with pytest.raises(ValueError, match="hops does not fit 3 slots: raise slots"):
        tight.loss(batch_of(rows))


# Training


def test_it_learns_paths_by_heart(tennessee, tiny_dataset):
    rows = tiny_dataset.rows("train")
    rows = rows.take(np.flatnonzero(rows.hops <= 8)[::30][:20])
    torch.manual_seed(0)
    options = {"slots": 8, "width": 32, "layers": 1}
    model, batch = build("masked", tennessee, **options), batch_of(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    found = refine_masked(model, rows.source, rows.target, 12, rounds=2, lengths=1)
    right = [
        np.mean([a == b.tolist() for a, b in zip(lists(f), rows.paths, strict=True)]) for f in found
    ]
    assert right[-1] >= 0.9


def test_a_stopped_training_ends_with_the_same_bits(tiny_dataset, tmp_path, monkeypatch):
    settings = TrainSettings(steps=7, batch_tokens=128, evaluations=1, save_seconds=0)
    options = SMALL | {"width": 8}
    monkeypatch.setattr(train_module, "LOG_EVERY", 3)
    whole = train("masked", tiny_dataset, tmp_path / "whole", settings, options)
    advance = train_module._Run._advance

    def stops(self, batch):
        if self.step == 4:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module._Run, "_advance", stops)
        train("masked", tiny_dataset, tmp_path / "stopped", settings, options)
    torch.rand(3)
    resumed = train("masked", tiny_dataset, tmp_path / "stopped", settings, options)
    loaded = load_trained(tmp_path / "stopped", tiny_dataset.graph)
    models = (whole.model, resumed.model, loaded)
    for a, b, c in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not loaded.training
