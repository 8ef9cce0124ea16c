"""New maps in context: a generated benchmark, and memories that read a stream (notebook 07)."""

from studies.episodes.atlas import Atlas, Maps
from studies.episodes.exam import Answers, answer, judge, recall
from studies.episodes.memory import LSTM, Memory, assert_pieces_agree, numbers_held
from studies.episodes.model import MEMORIES, EpisodeModel, Lessons, make_memory
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
    "draw_episodes",
    "judge",
    "make_memory",
    "numbers_held",
    "recall",
]
