from html import unescape

import pytest
from hostile import TOKENS, Document

from tl_edit.show.text import ZERO_WIDTH_SPACE, cell_text, for_components, visible


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("a", "a"),
        (" a", " a"),
        ("", "␣"),
        (" ", "␣"),
        ("   ", "␣␣␣"),
        ("\n", "↵"),
        ("a\r\n\tb", "a␍↵⇥b"),
        ("<bos>", "<bos>"),
        ("$x$", "$x$"),
        ("a\u202eb\u2066", "a⟨U+202E⟩b⟨U+2066⟩"),
    ],
)
def test_nothing_is_invisible(token, shown):
    assert visible(token) == shown


@pytest.mark.parametrize("token", TOKENS)
def test_cells_hold_the_token_and_no_markup(token):
    assert Document(cell_text(token)).tags == []
    assert unescape(cell_text(token)) == visible(token)


@pytest.mark.parametrize("token", TOKENS)
def test_components_read_the_same_as_html_and_as_text(token):
    shown = for_components(token)
    assert Document(shown).tags == []
    assert Document(shown).text == unescape(shown) == shown
    assert shown.replace(ZERO_WIDTH_SPACE, "") == visible(token)
