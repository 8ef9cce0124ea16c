"""Iterative refinement: whole paths at once, then better ones round by round.

Importing it registers the networks "masked" and "conductor".
"""

from citypaths.refine.conduct import conduct, repair
from citypaths.refine.conductor import Conductor
from citypaths.refine.masked import Masked
from citypaths.refine.resample import resample_segments
from citypaths.refine.rounds import Plan, refine_masked

__all__ = ["Conductor", "Masked", "Plan", "conduct", "refine_masked", "repair", "resample_segments"]
