"""Search: from a model and queries to paths, with the compute that each query spent."""

from citypaths.search.attempts import Attempts, draw
from citypaths.search.best_of import best_of, expected_best, scored, stitch, stitched
from citypaths.search.blind import blind
from citypaths.search.budget import Budget
from citypaths.search.decode import Moves, beam, greedy, sample
from citypaths.search.evolution import evolve, generations_of
from citypaths.search.heuristic import a_star
from citypaths.search.lookahead import beam_with_value, lookahead
from citypaths.search.parts import Interrupted, in_parts
from citypaths.search.stochastic import stochastic_beam
from citypaths.search.tree import mcts
from citypaths.search.worlds import LatentWorld, MapWorld, World

__all__ = [
    "Attempts",
    "Budget",
    "Interrupted",
    "LatentWorld",
    "MapWorld",
    "Moves",
    "World",
    "a_star",
    "beam",
    "beam_with_value",
    "best_of",
    "blind",
    "draw",
    "evolve",
    "expected_best",
    "generations_of",
    "greedy",
    "in_parts",
    "lookahead",
    "mcts",
    "sample",
    "scored",
    "stitch",
    "stitched",
    "stochastic_beam",
]
