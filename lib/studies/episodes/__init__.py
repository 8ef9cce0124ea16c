"""New maps in context: a generated benchmark, and memories that read a stream (notebook 07)."""

from studies.episodes.atlas import Atlas, Maps
from studies.episodes.core import Memory, assert_pieces_agree, blanked, numbers_held, swapped
from studies.episodes.exam import Answers, answer, judge, recall
from studies.episodes.lstm import LSTM
from studies.episodes.model import EpisodeModel, Lessons
from studies.episodes.networks import MEMORIES, make_memory
from studies.episodes.task import Episodes, Task, draw_episodes

__all__ = [
    "LSTM",
    "MEMORIES",
    "Answers",
    "Atlas",
    "EpisodeModel",
    "Episodes",
    "Lessons",
    "Maps",
    "Memory",
    "Task",
    "answer",
    "assert_pieces_agree",
    "blanked",
    "draw_episodes",
    "judge",
    "make_memory",
    "numbers_held",
    "recall",
    "swapped",
]
