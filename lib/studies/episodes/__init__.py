"""New maps in context: a generated benchmark, and memories that read a stream (notebook 07)."""

from studies.episodes.atlas import Atlas
from studies.episodes.exam import answer, judge, recall
from studies.episodes.memory import Memory, assert_pieces_agree, numbers_held
from studies.episodes.model import MEMORIES, EpisodeModel, Lessons, make_memory
from studies.episodes.task import Task, draw_episodes

__all__ = [
    "MEMORIES",
    "Atlas",
    "EpisodeModel",
    "Lessons",
    "Memory",
    "Task",
    "answer",
    "assert_pieces_agree",
    "draw_episodes",
    "judge",
    "make_memory",
    "numbers_held",
    "recall",
]
