"""Search: worlds, trees, learned judges and values, and their study (notebook 05)."""

from studies.search.blind import blind
from studies.search.energies import Doubt, Inconsistency
from studies.search.evolution import evolve, generations_of
from studies.search.exact import ExactValue, GreatCircle
from studies.search.heuristic import a_star
from studies.search.judge import Judge
from studies.search.lookahead import beam_with_value, lookahead
from studies.search.planner import Planner
from studies.search.reach import HopsToGo
from studies.search.reverse import Reverse
from studies.search.stochastic import stochastic_beam
from studies.search.tree import mcts
from studies.search.value import CostToGo
from studies.search.worlds import LatentWorld, MapWorld, World

__all__ = [
    "CostToGo",
    "Doubt",
    "ExactValue",
    "GreatCircle",
    "HopsToGo",
    "Inconsistency",
    "Judge",
    "LatentWorld",
    "MapWorld",
    "Planner",
    "Reverse",
    "World",
    "a_star",
    "beam_with_value",
    "blind",
    "evolve",
    "generations_of",
    "lookahead",
    "mcts",
    "stochastic_beam",
]
