from html import unescape

import pytest
from hostile import TOKENS, Document

from tl_edit.show.text import ZERO_WIDTH_SPACE, cell_text, ending, for_components, visible


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
        ("\0a\x1b[31m", "\\u0000a\\u001b[31m"),
        ("\u202eabc\u2069", "\\u202eabc\\u2069"),
        ("\u200b", "\\u200b"),
        ("a\u2028b\x85", "a\\u2028b\\u0085"),
        ("\ud800", "\\ud800"),
        ("👨\u200d👩", "👨\u200d👩"),
        ("می\u200cخواهم", "می\u200cخواهم"),
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


def test_the_end_of_a_text_has_whole_tokens():
    words = ["<|endoftext|>", "People", " often", " talk"]
    assert ending([], 5) == ""
    assert ending(words, 99) == "".join(words)
    assert ending(words, 20) == "…People often talk"
    assert ending(words, 12) == "… often talk"
    assert ending(["abcdefgh"], 5) == "…efgh"
