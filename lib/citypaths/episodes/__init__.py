"""New maps in context: a generated benchmark for memories."""

from citypaths.episodes.atlas import Atlas, Maps
from citypaths.episodes.exam import Answers, answer, judge, recall
from citypaths.episodes.model import EpisodeModel, Lessons
from citypaths.episodes.task import Episodes, Task, draw_episodes

__all__ = [
    "Answers",
    "Atlas",
    "EpisodeModel",
    "Episodes",
    "Lessons",
    "Maps",
    "Task",
    "answer",
    "draw_episodes",
    "judge",
    "recall",
]
