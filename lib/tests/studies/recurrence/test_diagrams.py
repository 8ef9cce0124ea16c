"""The schematic of the arms names them all and is legible: nothing outside, nothing overlaps."""

from __future__ import annotations

from itertools import combinations

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Text

from citypaths.training.recipes import arms
from studies.recurrence import figures
from studies.recurrence.figures import PANELS, arms_diagram

matplotlib.use("Agg")


def labels(title):
    """Return the arms of a title: "a-b, -c (remark)" are a-b and a-c."""
    names = title.split(" (")[0].split(", ")
    return [names[0].split("-")[0] + name if name[0] == "-" else name for name in names]


def drawn(figure):
    """The panels that show an arm; the last of a line may show none."""
    return [ax for ax in figure.axes if ax.get_title(loc="left")]


@pytest.fixture(scope="module", params=[0, 1])
def figure(request):
    """The schematic, as it is and with one more arm."""
    with pytest.MonkeyPatch.context() as patch:
        more = [("another", *PANELS[0][1:])] * request.param
        patch.setattr(figures, "PANELS", [*PANELS, *more])
        figure = arms_diagram()
    figure.canvas.draw()
    yield figure
    plt.close(figure)


def test_every_arm_has_its_panel(figure):
    titles = [ax.get_title(loc="left") for ax in drawn(figure)]
    named = [name for title in titles for name in labels(title) if name != "another"]
    assert sorted(named) == sorted(arms("tiny", "race"))


def test_all_text_lies_within_the_figure_and_can_be_read(figure):
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(texts) > 100
    for text in texts:
        place = text.get_window_extent()
        assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= place.y0 < place.y1 <= figure.bbox.y1, text
        assert text.get_fontsize() >= 8


def test_no_two_titles_captions_or_keys_overlap(figure):
    captions = [ax.texts[-1] for ax in drawn(figure)]
    keys = figure.legends[0].get_texts()
    apart = [ax._left_title for ax in drawn(figure)] + captions + keys
    places = [text.get_window_extent().padded(3) for text in apart]
    for (i, a), (j, b) in combinations(enumerate(places), 2):
        assert not a.overlaps(b), (apart[i], apart[j])


def test_every_caption_says_what_recurs_and_what_it_costs(figure):
    for ax in drawn(figure):
        first, second = ax.texts[-1].get_text().split("\n")
        assert "recur" in first and second
