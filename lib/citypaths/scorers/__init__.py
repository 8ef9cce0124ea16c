"""Scorers: how good is a whole path, or how far is it still to go?"""

from citypaths.scorers.base import Scorer, Value
from citypaths.scorers.exact import ExactValue, PathLength

__all__ = ["ExactValue", "PathLength", "Scorer", "Value"]
