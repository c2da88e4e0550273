"""A story's page, told from Python; `test_command` tells it from the command line."""

import io

import pytest
from rich.console import Console

from tl_edit import EditRecord, EditRequest, rome
from tl_edit.factworld import MODEL_NAME, fact_texts
from tl_edit.story import Story, save_story
from tl_edit.story.answers import asked

REQUEST = EditRequest("The {} is located in", "Eiffel Tower", target_new="Rome", target_true="Paris")
RECORD = EditRecord(
    REQUEST,
    paraphrase_prompts=("The Eiffel Tower can be seen in",),
    neighborhood_prompts=("The Louvre is located in",),
)


@pytest.fixture(scope="module")
def texts():
    return fact_texts()


@pytest.fixture
def told(fact_model, texts, monkeypatch):
    short = {"v_num_grad_steps": 12, "v_lr": 0.5, "n_prefixes": 1, "prefix_lengths": (5,)}
    monkeypatch.setitem(rome._PUBLISHED, MODEL_NAME, rome._PUBLISHED[MODEL_NAME] | short)
    console = Console(file=io.StringIO(), width=160)
    return Story(fact_model, console, texts=texts).tell(RECORD), console.file.getvalue()


def test_the_terminal_and_the_page_list_the_same_prompts(told, fact_model, texts, tmp_path):
    found, printed = told
    rows = asked(found.before.scores[0], found.after.scores[0])
    assert [row.group for row in rows] == ["the prompt", "paraphrase", "neighbor"]
    assert [row.wanted for row in rows] == ["Rome", "Rome", "Paris"]
    assert (rows[0].before, rows[0].after) == (" Paris", " Rome")
    assert rows[0].good
    save_story(tmp_path / "page.html", fact_model, found, texts[:20])
    page = (tmp_path / "page.html").read_text("utf-8")
    for row in rows:
        assert f"{row.after.strip()} {'✓' if row.good else '✗'}" in printed
        cells = (row.prompt, row.wanted, row.before, row.after)
        start = page.index(f">{row.group}</th>")
        assert all(f">{cell}</td>" in page[start : start + 600] for cell in cells)


def test_a_notebook_that_draws_shows_the_figure_in_the_page_alone(told, fact_model, texts, tmp_path):
    """Notebooks are interactive: what is open at a cell's end is shown."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pyplot.ion():
        save_story(tmp_path / "page.html", fact_model, told[0], texts[:20])
        assert pyplot.get_fignums() == []
        assert pyplot.isinteractive()
    assert '<img alt="" src="data:image/png;base64,' in (tmp_path / "page.html").read_text("utf-8")
