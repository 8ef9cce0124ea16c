"""The table of recipes: its arms, what a size changes in them, and steps within budgets."""

from __future__ import annotations

import pytest

from citypaths.models import build
from citypaths.sizes import SIZES, get_size, two_way_of
from citypaths.training import recipes
from citypaths.training.recipes import arms, recipe

STUDIES = ("baselines", "priors", "race", "ladder", "search", "refinement", "episodes", "learning")


@pytest.mark.parametrize("name", recipes.SIZES)
def test_every_arm_has_a_recipe(name):
    size = SIZES[name]
    for study in STUDIES:
        for label in arms(size, study):
            own = recipe(size, label, "" if study == "learning" else study)
            assert own.arm == label and own.budget > 0 and own.batch_tokens > 0
    old = two_way_of(size)
    assert recipe(old, arms(size, "waterfall")[0]).model == "rnn"
    assert len(recipes.seeds(size, 5)) >= 1 and recipes.seeds(size, 5)[0] == 5


def test_arms_of_one_label():
    assert recipe("small", "transformer").model == "transformer"
    assert recipe("small", "transformer", "episodes").model == "episodes"
    assert recipe("small", "gru") == recipe("small", "gru", "ladder")
    assert recipe("small", "gru-128").evaluations == 8
    assert recipe("small", "gru-128", "priors").evaluations == 1


def test_an_unknown_arm_is_told_the_known():
    with pytest.raises(ValueError, match=r"no recipe for 'gru-48' at small; .*baselines: gru-64, "):
        recipe("small", "gru-48")


def test_the_race_is_run_at_equal_budgets():
    for name in recipes.SIZES:
        race = [recipe(name, label) for label in arms(name, "race")]
        race += [recipe(name, label) for label in arms(name, "ladder")]
        assert len({(arm.budget, arm.batch_tokens) for arm in race}) == 1
        assert [arm.settings["width"] for arm in race[-5:]] == [
            recipes.WIDTH[recipes.SIZES.index(name)] * times // 4 for times in (1, 2, 4, 8, 16)
        ]


def test_a_size_changes_every_recipe_alike():
    size = get_size("tiny", {"budget": 1e6, "seeds": 2, "arms": {"race": ["gru", "act"]}})
    assert arms(size, "race") == ("gru", "act") and arms(size, "baselines")[0] == "gru-16"
    for label in ("gru", "gru-16", "value", "dnc"):
        assert recipe(size, label) == recipe("tiny", label).changed(budget=1e6)
    assert list(recipes.seeds(size)) == [0, 1]


def test_steps_are_the_most_that_the_budget_allows(tennessee):
    own = recipe("tiny", "gru-16")
    step = build("rnn", tennessee, **own.settings).training_flops_per_step * own.batch_tokens
    for budget, steps in ((1.0, 1), (3 * step, 3), (3.99 * step, 3), (own.budget, 60)):
        assert own.changed(budget=budget).training(tennessee, 0).steps == steps
    wide = own.changed(variant={"softmaxes": 2})
    assert wide.training(tennessee, 0).steps == 60
    more = own.changed(settings={"softmaxes": 2})
    assert more.settings == {**own.settings, "softmaxes": 2}
    assert more.training(tennessee, 0).steps < 60
