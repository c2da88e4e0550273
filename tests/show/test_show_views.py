"""circuitsvis' components: their properties, and what stands where scripts do not run."""

import json
import math
import re

import pytest
import torch
from hostile import TOKENS, Document

from tl_edit import show
from tl_edit.show.components import MAX_HEADS, MAX_LIKELIEST, MAX_TOKENS
from tl_edit.show.text import ZERO_WIDTH_SPACE, for_components


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tokens_view(tokens=TOKENS, heading="tokens", values=None):
    values = random(len(tokens), 2) if values is None else values
    return show.tokens_view(tokens, values, ["before", "after"], heading=heading, unit="probability")


def layers_view(tokens=TOKENS, heading="layers", values=None):
    values = random(2, len(tokens), 3) if values is None else values
    return show.layers_view(tokens, values, ["MLP", "attention"], ["0", "1", "2"], heading=heading, unit="effect")


def log_probs_view(tokens=TOKENS, heading="log-probabilities"):
    n = len(tokens) - 1
    given = {
        "likeliest": {name: [list(tokens[:3])] * n for name in ("before", "after")},
        "log_probs": {name: -random(n, 3).abs() for name in ("before", "after")},
        "ranks": {name: torch.arange(1, n + 1) for name in ("before", "after")},
        "own": {name: -random(n).abs() for name in ("before", "after")},
    }
    return show.log_probs_view(tokens, **given, heading=heading)


def attention_view(tokens=TOKENS, heading="attention", n=3, values=None):
    values = random(n, len(tokens), len(tokens)) if values is None else values
    return show.attention_view(values, [f"0.{i}" for i in range(len(values))], tokens, heading=heading, unit="change")


def samples_view(tokens=TOKENS, heading="samples"):
    values = [[random(len(tokens))], [random(len(tokens)), random(2)]]
    contexts = [[list(tokens)], [list(tokens), ["a", "b"]]]
    return show.samples_view(contexts, values, ["3.14", "3.15"], heading=heading, unit="activation")


VIEWS = {make.__name__: make for make in (tokens_view, layers_view, log_probs_view, attention_view, samples_view)}
each_view = pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)


def strings(value):
    """All strings in JSON's own values."""
    if isinstance(value, str):
        return [value]
    each = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in each for text in strings(part)]


@each_view
def test_tokens_are_literal(make):
    view = make(heading="</script><b>")
    static = Document(view.static)
    assert not {"script", "img", "b", "bos", "s"} & set(static.tags)
    for part in view.parts:
        assert not any(re.search(r"<[^\u200b]|&[^\u200b]", text) for text in strings(dict(part.props)))
    for token in TOKENS[:-1] if make is log_probs_view else TOKENS:
        assert show.visible(token).strip() in static.text
        assert any(for_components(token) in strings(dict(part.props)) for part in view.parts)


@each_view
def test_no_script_is_ended_or_begun_by_data(make):
    view = make(heading="</script><script>document.title=1</script>")
    page = Document(show.page([view], title="</title><b>"))
    # One for the library, one for each part.
    assert page.tags.count("script") == 1 + len(view.parts)
    assert len(page.scripts) == 1 + len(view.parts)
    assert "b" not in page.tags
    assert not any("</script" in script for script in page.scripts)
    assert "</script><script>document.title=1</script>" in page.text


@each_view
def test_nothing_comes_from_the_network(make):
    view = make()
    for html in (view.static, view.markup(), show.page([view], title="t")):
        assert not re.search(r"https?:|\bsrc=\"(?!data:)|\bhref=|@import|url\(", html)
    assert "default-src 'none'" in show.page([view], title="t")


@each_view
def test_the_same_bytes_twice(make):
    assert make()._repr_html_() == make()._repr_html_()


@each_view
def test_properties_are_json_without_nan_and_short(make):
    for part in make().parts:
        text = json.dumps(dict(part.props), allow_nan=False)
        assert not re.search(r"\d\.\d{7}", text)


def test_scales_are_symmetric_and_shared():
    values = torch.tensor([[0.5, -2.0], [math.nan, 0.1]], dtype=torch.float64)
    view = show.tokens_view(["a", "b"], values, ["x", "y"], heading="h", unit="nats")
    props = view.parts[0].props
    assert props["positiveBounds"] == [2.001, 2.001]
    assert props["negativeBounds"] == [-2.001, -2.001]
    assert props["values"] == [[0.5, -2.0], [0.0, 0.1]]
    assert view.note == "nats; colours from -2 (red or orange) to 2 (blue or violet)."
    heads = attention_view(["a", "b"], values=torch.tensor([[[-3.0, 0.0], [1.0, 1.0]]])).parts[0].props
    assert (heads["minValue"], heads["maxValue"]) == (-heads["maxValue"], 3.002)


def test_layers_have_one_scale_by_two_tokens_without_width():
    values = torch.zeros(2, 3, 3, dtype=torch.float64)
    values[1, 2, 0] = -2.0
    props = layers_view(["a", "b", "c"], values=values).parts[0].props
    assert [row[-2:] for row in props["tokens"]] == [[ZERO_WIDTH_SPACE] * 2] * 2
    # token, layer, unit
    assert [row[-2:] for row in props["activations"]] == [[[[2.001]] * 3, [[-2.001]] * 3]] * 2
    assert props["activations"][1][3] == [[-2.0], [0.0], [0.0]]
    assert [len(row) for row in props["activations"]] == [len(row) for row in props["tokens"]]


@pytest.mark.parametrize("make", [tokens_view, layers_view, attention_view])
def test_nothing_but_zeros_and_nan_has_a_scale(make):
    shape = {tokens_view: (2, 2), layers_view: (2, 2, 3), attention_view: (1, 2, 2)}[make]
    for value in (0.0, math.nan):
        assert "from -1 (red" in make(["a", "b"], values=torch.full(shape, value)).note


def test_large_inputs_are_capped_with_a_note():
    n = MAX_TOKENS + 5
    many = [f"t{i}" for i in range(n)]
    for view in (tokens_view(many), layers_view(many)):
        assert "The 5 first tokens are left out." in view.note
        assert "t5" in view.static
        assert "t4<" not in view.static
    assert len(tokens_view(many).parts[0].props["tokens"]) == MAX_TOKENS
    heads = attention_view([f"t{i}" for i in range(4)], n=MAX_HEADS + 2)
    assert "The 2 weakest heads are left out." in heads.note
    assert len(heads.parts[0].props["attention"]) == MAX_HEADS
    assert f"The {n - MAX_TOKENS // 2} first tokens are left out." in attention_view(many, n=1).note


def test_heads_are_ordered_by_their_strongest_entry():
    values = torch.zeros(3, 2, 2)
    values[0, 1, 0], values[1, 1, 1], values[2, 1, 1] = 0.1, -0.9, 0.5
    assert attention_view(["a", "b"], values=values).parts[0].props["attentionHeadNames"] == ["0.1", "0.2", "0.0"]


def test_views_of_one_content_are_told_from_others():
    def keys(view):
        return re.findall(r'<div data-tl-edit="(\w+)"', view.markup())

    first, second = (keys(tokens_view(each)) for each in (["a"], ["b"]))
    assert first != second


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_infinities_are_at_the_ends_of_the_scale_and_do_not_set_it(dtype):
    values = torch.tensor([[1.0, -math.inf], [math.nan, math.inf]], dtype=dtype)
    tokens = show.tokens_view(["a", "b"], values, ["x", "y"], heading="h", unit="u")
    assert tokens.parts[0].props["values"] == [[1.0, -1.0], [0.0, 1.0]]
    heads = attention_view(["a", "b"], values=values[None])
    for view in (tokens, heads):
        assert "from -1 (red" in view.note
        assert "Infinity" not in view.markup()
    own = torch.tensor([-math.inf], dtype=dtype)
    said = show.log_probs_view(
        ["a", "b"], {"n": [["b"]]}, {"n": own[None]}, {"n": torch.tensor([7])}, {"n": own}, heading="h"
    )
    assert said.parts[0].props["correctTokenLogProb"] == [-1e4]
    assert "-inf" in said.static


def test_ranks_are_from_one_without_scripts_and_as_the_component_counts_with_them():
    view = show.log_probs_view(
        ["a", "b"], {"n": [["b"]]}, {"n": -random(1, 1).abs()}, {"n": torch.tensor([7])}, {"n": random(1)}, heading="h"
    )
    assert view.parts[0].props["correctTokenRank"] == [6]
    assert "<td" in view.static
    assert ">7</td>" in view.static
    assert ">rank</th>" in view.static
    assert "ranks from 0" in view.note


def test_few_of_many_likely_tokens_are_listed():
    k = MAX_LIKELIEST + 5
    view = show.log_probs_view(
        ["a", "b"],
        {"n": [["b"] * k]},
        {"n": -random(1, k).abs()},
        {"n": torch.tensor([7])},
        {"n": random(1)},
        heading="h",
    )
    props = view.parts[0].props
    assert [len(each) for each in (props["topKTokens"][0], props["topKLogProbs"][0])] == [MAX_LIKELIEST] * 2
