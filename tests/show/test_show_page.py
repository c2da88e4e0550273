"""Pages: what goes in, that it is safe, and what a browser makes of it."""

import re

import browser
import pytest
import torch
from hostile import TOKENS, Document
from test_show_views import VIEWS

from tl_edit import show
from tl_edit.show.text import ZERO_WIDTH_SPACE

INLINE = [token for token in TOKENS if token != "[data-tl-edit]"]


class Shown:
    def _repr_html_(self):
        return "<p>shown</p>"


class Silent:
    def _repr_html_(self):
        return None


def test_texts_are_paragraphs_and_headings():
    page = show.page(["# A <b>", "B & c", Shown()], title="<T>")
    assert "<h2>A &lt;b&gt;</h2>" in page
    assert "<p>B &amp; c</p>" in page
    assert "<p>shown</p>" in page
    assert "<title>&lt;T&gt;</title>" in page
    assert "script" not in Document(page).tags


def test_the_library_is_there_once_and_only_for_views():
    page = show.page([make() for make in VIEWS.values()], title="t")
    assert page.count("window.tlEditCircuitsVis = ") == 1
    assert "tlEditCircuitsVis" not in show.page(["text"], title="t")


@pytest.mark.parametrize("token", TOKENS)
def test_hostile_titles_and_texts_are_text(token):
    read = Document(show.page([token or " ", f"# {token}"], title=token))
    assert not {"script", "img", "b", "s", "bos"} & set(read.tags)
    assert read.text.count(token) >= 3


def test_the_same_bytes_twice():
    first, second = (show.page(["text", *(make() for make in VIEWS.values())], title="t") for _ in range(2))
    assert first == second


def test_axes_become_images():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    line = {"a": torch.zeros(2)}
    axis = show.plot_lines(torch.arange(2.0), line, None, xlabel="x", ylabel="y")
    several = show.plot_panels(torch.arange(2.0), {"a": line, "b": line}, None, xlabels=["x", "x"], ylabel="y")
    figure, grid = pyplot.subplots(1, 2)
    pyplot.close(figure)
    for axes in (axis, several, grid):
        assert show.page([axes], title="t").count('<img alt="" src="data:image/png;base64,') == 1


def test_lists_are_what_they_hold():
    view = VIEWS["tokens_view"]()
    one, lists = show.page(["# a", Shown(), view], title="t"), show.page([["# a", (Shown(), [view])], []], title="t")
    assert one == lists

    class Several(tuple):
        def _repr_html_(self):
            return "<p>several</p>"

    assert "<p>several</p>" in show.page([Several(["a"])], title="t")


def test_save_html_replaces_the_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    show.save_html(path, "text", title="T")
    assert path.read_text("utf-8") == show.page(["text"], title="T")


def test_save_html_refuses_with_advice(tmp_path):
    with pytest.raises(ValueError, match="save_html: found nothing to show; expected results, views or texts; pass"):
        show.save_html(tmp_path / "page.html")
    with pytest.raises(ValueError, match="save_html: found nothing to show"):
        show.save_html(tmp_path / "page.html", [], ([],))
    for wrong, kind in ((5, "int"), (None, "NoneType"), ({}, "dict"), (Silent(), "Silent"), (["a", [5]], "int")):
        with pytest.raises(ValueError, match=f"something of type {kind}; expected results .*; leave it out"):
            show.save_html(tmp_path / "page.html", wrong)
    with pytest.raises(ValueError, match=r"gone.*cannot be written.*; expected a file in a folder .*; choose another"):
        show.save_html(tmp_path / "gone" / "page.html", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_browser_shows_every_view_and_runs_nothing_of_the_data(tmp_path):
    table = torch.rand(len(INLINE), 3, generator=torch.Generator().manual_seed(0))
    heatmap = show.heatmaps_html(
        [table], titles=INLINE[:1], rows=INLINE, columns=["0", "1", "2"], heading=INLINE[3], unit="u"
    )

    class Inline:
        def _repr_html_(self):
            return heatmap + show.table([(token, token) for token in INLINE])

    views = [make(heading=INLINE[3]) for make in VIEWS.values()]
    # The same view twice, as a cell that is run twice.
    title = "</title><script>document.title=1</script>"
    found, document = browser.report(show.page([*views, views[0], Inline(), *INLINE[:2]], title=title), tmp_path)
    # A library inside circuitsvis' script asks for WebAssembly, is refused by the page's policy, and goes on without.
    assert set(found["errors"]) <= {"refused wasm-eval"}
    assert found["title"] == title
    parts = [part for view in [*views, views[0]] for part in view.parts]
    assert [view["drawn"] for view in found["views"]] == ["yes"] * len(parts)
    assert all(view["height"] > 20 for view in found["views"]), found["views"]
    assert all(view["tokens"] == 0 for view in found["views"])
    assert found["canvases"], "attention is drawn on canvases"
    assert all(colours > 1 for colours in found["canvases"]), found["canvases"]
    for view, part in zip(found["views"], parts, strict=True):
        said = view["text"].replace(ZERO_WIDTH_SPACE, "").replace("\xa0", " ")
        if part.component not in ("TokenLogProbs", "AttentionHeads"):
            assert all(show.visible(token).strip() in said for token in TOKENS), (part.component, said)
        assert said.strip()
    read = Document(re.sub(r'<pre id="report">.*?</pre>', "", document, flags=re.DOTALL))
    assert all(read.text.count(show.visible(token)) >= 2 for token in INLINE)
    assert not {"bos", "s", "b"} & set(read.tags)
    assert "img" not in read.tags


NOTEBOOK = """
:root { --ink: rgba(0,0,0,.87); --row: #f5f5f5; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --ink: #fff; --row: #424242; --paper: #111 } }
body { background: var(--paper); color: var(--ink) }
table { border: none; color: var(--ink); font-size: 13px; table-layout: fixed; margin: 0 auto }
td, th, tr { vertical-align: middle; padding: .5em; line-height: normal; white-space: normal; border: none }
td, th, tr { text-align: right }
tbody tr:nth-child(odd) { background: var(--paper) }
tbody tr:nth-child(even) { background: var(--row) }
"""
"""What notebooks do to tables, in the colours of their theme."""


@pytest.mark.parametrize("dark", [False, True])
def test_all_is_read_on_light_and_dark_pages_and_on_narrow_ones(tmp_path, dark):
    values = torch.linspace(-1, 1, len(INLINE), dtype=torch.float64)
    long = " ".join(["a context of many tokens"] * 20)
    line = show.Marked(tokens=INLINE, values=values, label="1.64", before=long, after=long)
    wide = torch.rand(3, 200, generator=torch.Generator().manual_seed(0)) - 0.5
    shown = [
        show.marked_table([[["a"], [line, "b"]]] * 3, columns=["c", "d"], heading="h", note="n"),
        show.heatmaps_html(
            [wide], titles=["t"], rows=list("abc"), columns=list(map(str, range(200))), heading="h", unit="u"
        ),
        show.table([("a" * 20,) * 20] * 3, columns=["b" * 20] * 20, heading="h"),
        *(make().static for make in VIEWS.values()),
    ]

    class All:
        def _repr_html_(self):
            return "".join(shown)

    page = show.page([All()], title="t").replace("</style>", f"{NOTEBOOK}</style>")
    found, document = browser.report(page, tmp_path, dark=dark, width=500)
    assert found["faint"] == []
    assert found["wide"] <= 500
    assert "white-space:pre-wrap" not in document


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "ünïcode 🙂.html"
    path.write_text("old", "utf-8")

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", full)
        with pytest.raises(ValueError, match="cannot be written .*No space left on device"):
            show.save_html(path, "new")
    assert path.read_text("utf-8") == "old"
    for wrong in (tmp_path, tmp_path / "a\0b.html", tmp_path / ("n" * 300)):
        with pytest.raises(ValueError, match=r"save_html: .* cannot be written .*; expected a file in a folder"):
            show.save_html(wrong, "text")
    assert list(tmp_path.iterdir()) == [path]
    show.save_html(path, "new")
    assert "new" in path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_halves_of_characters_and_zeros_are_written_as_what_no_character_is(tmp_path):
    path = tmp_path / "page.html"
    show.save_html(path, "a\ud800b\0c", show.tokens_view(["\ud800"], torch.ones(1, 1), ["\0"], heading="\0", unit="u"))
    found = path.read_text("utf-8")
    assert "a\ufffdb\ufffdc" in found
    assert "\0" not in found


def test_a_class_is_no_result(tmp_path):
    with pytest.raises(ValueError, match="something of type type; expected results"):
        show.save_html(tmp_path / "page.html", Shown)
