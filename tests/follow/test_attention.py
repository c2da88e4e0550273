"""Attention patterns, against an ordinary cache and plain transformers."""

import io
import math

import pytest
import tiny_models
import torch
from followed import CASES, FEW, PROMPT, edit_of, hooks_left, ids_of, kept_at_once, model_of, run_by_hand, tolerance
from some_edits import same, weights

from tl_edit import attention_change, host
from tl_edit.follow import AttentionChange

each_case = pytest.mark.parametrize("case", CASES, ids=str)


@each_case
def test_patterns_are_those_of_an_ordinary_cache(case):
    model = model_of(case)
    edit = edit_of(model)
    found = attention_change(model, PROMPT, edit=edit)
    n = ids_of(model, PROMPT).shape[1]
    assert found.patterns.shape == (2, 3, 4, n, n)
    for i, switched in enumerate((None, edit)):
        _, cache = run_by_hand(model, PROMPT, switched)
        for layer in range(3):
            expected = cache[f"blocks.{layer}.attn.hook_pattern"][0].float()
            torch.testing.assert_close(found.patterns[i, layer], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.change, found.patterns[1] - found.patterns[0])
    torch.testing.assert_close(found.patterns.sum(-1), torch.ones(2, 3, 4, n), atol=1e-5, rtol=0)
    # The edit writes in layer 1, so what looks before is as it was.
    assert float(found.change[:2].abs().max()) < 1e-6 < float(found.change[2].abs().max())


@each_case
def test_patterns_are_those_of_plain_transformers(case):
    model = model_of(case)
    plain = tiny_models.build_hf(case.family, model.cfg.d_vocab, dtype=torch.float64)
    with torch.no_grad():
        patterns = torch.cat(plain(ids_of(model, PROMPT), output_attentions=True).attentions)
    read = attention_change(model, PROMPT).patterns[0]
    torch.testing.assert_close(read, patterns.float(), atol=max(1e-6, tolerance(case)), rtol=0)


def test_layers_and_heads_are_chosen():
    model = model_of(FEW[0])
    edit = edit_of(model, layers=(0,))
    whole = attention_change(model, PROMPT, edit=edit)
    part = attention_change(model, PROMPT, edit=edit, layers=[2, 1], heads=(3,))
    assert part.layers == (1, 2)
    assert part.heads == (3,)
    assert torch.equal(part.patterns, whole.patterns[:, 1:, 3:])
    assert [at.name for at in part.strongest()] == [at.name for at in whole.strongest(99) if at.name in ("1.3", "2.3")]
    one = attention_change(model, PROMPT, edit=edit, layers=2, heads=3)
    assert (one.layers, one.heads) == ((2,), (3,))
    assert torch.equal(one.patterns, whole.patterns[:, 2:, 3:])
    for call, words in {"layers": [3], "heads": [-1]}.items():
        with pytest.raises(ValueError, match=rf"{call} is \[.*expected one or some of the numbers 0 to "):
            attention_change(model, PROMPT, **{call: words})
    with pytest.raises(ValueError, match=r"layers is \[\]"):
        attention_change(model, PROMPT, layers=[])


def test_without_patterns_there_is_advice(monkeypatch):
    """As of a bridge whose attention computes no patterns."""
    model = model_of(FEW[0])
    point = host.hook_points(model)["blocks.1.attn.hook_pattern"]
    monkeypatch.setattr(point, "add_hook", lambda hook: None)
    with pytest.raises(ValueError, match=r"blocks.1.attn.hook_pattern did not fire.*eager"):
        attention_change(model, PROMPT)
    assert not point.fwd_hooks


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_model_is_as_it_was_after_an_exception(case):
    model = model_of(case)
    before = weights(model)

    def stop(act, hook=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attention_change(model, PROMPT, edit=edit_of(model), hooks=[("blocks.2.attn.hook_pattern", stop)])
    assert same(weights(model), before)
    assert hooks_left(model) == []


def made(patterns, tokens=("<bos>", "$x^", "</script>"), runs=("before", "after")) -> AttentionChange:
    values = torch.tensor(patterns)
    return AttentionChange(
        prompt="".join(tokens),
        tokens=tokens,
        runs=runs,
        switched="an edit",
        provenance=host.provenance(model_of(FEW[0]), prepend_bos=True),
        layers=(4,),
        heads=tuple(range(values.shape[2])),
        patterns=values,
    )


ROWS = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
BEFORE = [[*ROWS, [0.2, 0.2, 0.6]], [*ROWS, [0.1, 0.1, 0.8]], [*ROWS, [0.0, 1.0, 0.0]]]
AFTER = [[*ROWS, [0.3, 0.2, 0.5]], [*ROWS, [0.0, 0.9, 0.1]], [[1.0, 0.0, 0.0], [0.1, 0.9, 0.0], [0.0, 1.0, 0.0]]]


def test_heads_are_ranked_by_their_largest_change_with_its_place():
    result = made([[BEFORE], [AFTER]])
    first, second, third = result.strongest()
    # A loss counts as much as a gain.
    assert (first.name, first.dest, first.src) == ("4.1", 2, 1)
    assert (first.before, first.after) == pytest.approx((0.1, 0.9))
    assert first.change == pytest.approx(0.8)
    assert (second.name, second.dest, second.src, round(second.change, 6)) == ("4.2", 1, 0, -0.4)
    assert third.name == "4.0"
    assert result.strongest(1) == (first,)
    assert repr(result).endswith("most +0.800 in 4.1 </script> ← $x^)")
    with pytest.raises(ValueError, match="k is 0; expected an integer of 1 or more"):
        result.strongest(0)


def test_every_view_has_the_heads_in_the_order_of_their_change():
    result = made([[BEFORE], [AFTER]])
    for which, value in (("difference", 0.8), ("before", 0.1), ("after", 0.9)):
        (part,) = result.view(which).parts
        assert part.props["attentionHeadNames"] == ["4.1", "4.2", "4.0"]
        assert part.props["attention"][0][2][1] == pytest.approx(value)
        assert part.props["minValue"] == -part.props["maxValue"]
        static = result.view(which).static
        assert "<bos>" not in static
        assert "</script>" not in static
        assert "&lt;bos&gt;" in static
    assert result.view().parts[0].props == result.view("difference").parts[0].props


def test_the_model_alone_has_patterns_and_no_change():
    alone = made([[BEFORE]], runs=("model",))
    assert alone.view().parts[0].props["attentionHeadNames"] == ["4.0", "4.1", "4.2"]
    assert 'title="layer 4, 2: 1.0000"' in alone._repr_html_()
    assert "<bos>" not in alone._repr_html_()
    for call in (lambda: alone.change, alone.strongest, lambda: alone.view("difference")):
        with pytest.raises(ValueError, match="nothing was switched on, so there is no difference"):
            call()
    with pytest.raises(ValueError, match="which is 'after'"):
        alone.view("after")


def test_the_table_says_where():
    html = made([[BEFORE], [AFTER]])._repr_html_()
    assert "&lt;/script&gt; ← $x^" in html
    assert "2 ← 1" in html
    assert "+0.800" in html
    assert html.index("4.1") < html.index("4.2") < html.index("4.0")


def test_the_plot_is_layer_by_head():
    pytest.importorskip("matplotlib")
    axis = made([[BEFORE], [AFTER]]).plot()
    axis.figure.savefig(io.BytesIO())
    assert axis.collections[0].get_array().flatten().tolist() == pytest.approx([0.1, 0.8, 0.4])
    # To earlier tokens, the first aside.
    alone = made([[BEFORE]], runs=("model",)).plot()
    assert alone.collections[0].get_array().flatten().tolist() == pytest.approx([0.2, 0.1, 1.0])


def test_frames_leave_out_what_nobody_sees():
    pytest.importorskip("pandas")
    frame = made([[BEFORE], [AFTER]]).to_dataframe()
    assert len(frame) == 3 * 6
    assert (frame["src"] <= frame["dest"]).all()
    row = frame[(frame["head"] == 1) & (frame["dest"] == 2) & (frame["src"] == 1)]
    assert float(row["after"].iloc[0]) == pytest.approx(0.9)
    assert int(row["layer"].iloc[0]) == 4


def test_frames_of_long_prompts_are_not_made_to_be_thrown_away():
    pandas = pytest.importorskip("pandas")
    n = 60
    result = made(torch.rand(2, 1, 3, n, n).tril().tolist(), tokens=("a",) * n)
    made_of = []
    whole = pandas.DataFrame.__init__

    def counted(self, data=None, *args, **options):
        whole(self, data, *args, **options)
        made_of.append(len(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pandas.DataFrame, "__init__", counted)
        frame = result.to_dataframe()
    assert max(made_of) == len(frame) == 3 * n * (n + 1) // 2
    row = frame[(frame["head"] == 2) & (frame["dest"] == 50) & (frame["src"] == 7)]
    assert float(row["after"].iloc[0]) == pytest.approx(float(result.patterns[1, 0, 2, 50, 7]))


def test_the_table_has_layers_in_the_order_of_the_figure(fact_model):
    pytest.importorskip("matplotlib")
    found = attention_change(fact_model, "The Eiffel Tower is in")
    html = found._repr_html_()
    assert html.index(">layer 5<") < html.index(">layer 4<") < html.index(">layer 0<")
    top = float(found._elsewhere()[5, 0].max())
    assert f'title="layer 5, 0: {top:.4f}"' in html
    axis = found.plot()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels.index("5") > labels.index("0")
    assert not axis.yaxis_inverted()


def test_of_patterns_one_layer_is_kept_at_once_beside_the_result():
    model = tiny_models.build("gpt2", n_layers=6)
    n = ids_of(model, PROMPT).shape[1]

    def follow(hooks):
        attention_change(model, PROMPT, hooks=hooks, heads=[1])

    assert kept_at_once(model, follow, (4, n, n)) <= 1


def test_a_model_that_says_no_numbers_is_refused():
    model = model_of(FEW[0])

    def spoil(act, hook=None):
        return act * math.nan

    with pytest.raises(ValueError, match="probabilities are not finite; expected numbers"):
        attention_change(model, PROMPT, hooks=[("blocks.0.hook_resid_post", spoil)])
    assert hooks_left(model) == []
