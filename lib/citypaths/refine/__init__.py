"""Refinement: from a whole path to a better one."""

from citypaths.refine.resample import resample_segments

__all__ = ["resample_segments"]
