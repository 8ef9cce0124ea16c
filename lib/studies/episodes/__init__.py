"""New maps in context: a generated benchmark, and memories that read a stream (notebook 07)."""

from studies.episodes.exam import answer, judge
from studies.episodes.maps import Atlas
from studies.episodes.model import MEMORIES, EpisodeModel, Lessons
from studies.episodes.task import Task, draw_episodes
from studies.memory.streams import Memory, assert_pieces_agree

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
]
