"""Scorers: how good is a whole path, or how far is it still to go?"""

from citypaths.scorers.base import Scorer, Value
from citypaths.scorers.energies import LOST, Doubt, Inconsistency
from citypaths.scorers.exact import ExactValue, GreatCircle, PathLength
from citypaths.scorers.judge import Judge
from citypaths.scorers.likelihood import Likelihood, Reverse, Sum
from citypaths.scorers.reach import HopsToGo
from citypaths.scorers.value import CostToGo

__all__ = [
    "LOST",
    "CostToGo",
    "Doubt",
    "ExactValue",
    "GreatCircle",
    "HopsToGo",
    "Inconsistency",
    "Judge",
    "Likelihood",
    "PathLength",
    "Reverse",
    "Scorer",
    "Sum",
    "Value",
]
