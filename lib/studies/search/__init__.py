"""Search: worlds, trees, learned judges and values, and their study (notebook 05)."""

from studies.search.energies import Doubt, Inconsistency, Reverse
from studies.search.evolution import evolve
from studies.search.heuristic import a_star
from studies.search.judge import Judge
from studies.search.pairs import CostToGo, HopsToGo
from studies.search.planner import Planner
from studies.search.sampling import blind, stochastic_beam
from studies.search.tree import beam_with_value, mcts
from studies.search.worlds import GreatCircle, LatentWorld, MapWorld
