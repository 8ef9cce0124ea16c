"""The schematic of the arms names them all and is legible: nothing outside, nothing overlaps."""

from __future__ import annotations

from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from studies.recurrence.diagrams import arms_diagram
from studies.recurrence.study import arms

matplotlib.use("Agg")


def labels(title):
    """Return the arms of a title: "a-b, -c (remark)" are a-b and a-c."""
    names = title.split(" (")[0].split(", ")
    return [names[0].split("-")[0] + name if name[0] == "-" else name for name in names]


@pytest.fixture(scope="module")
def figure():
    drawn = arms_diagram()
    drawn.canvas.draw()
    yield drawn
    plt.close(drawn)


def test_every_arm_has_its_panel(figure):
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(titles) == 8
    assert sorted(name for title in titles for name in labels(title)) == sorted(arms(8))


def test_all_text_lies_within_the_figure_and_can_be_read(figure):
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(texts) > 100
    for text in texts:
        place = text.get_window_extent()
        assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= place.y0 < place.y1 <= figure.bbox.y1, text
        assert text.get_fontsize() >= 8


def test_no_two_titles_captions_or_keys_overlap(figure):
    captions = [ax.texts[-1] for ax in figure.axes]
    keys = figure.legends[0].get_texts()
    apart = [ax._left_title for ax in figure.axes] + captions + keys
    places = [text.get_window_extent().padded(3) for text in apart]
    for (i, a), (j, b) in combinations(enumerate(places), 2):
        assert not a.overlaps(b), (apart[i], apart[j])


def test_every_caption_says_what_recurs_and_what_it_costs(figure):
    for ax in figure.axes:
        first, second = ax.texts[-1].get_text().split("\n")
        assert "recur" in first and second
