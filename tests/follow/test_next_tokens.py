"""What is said behind every token, against whole passes, and against plain transformers."""

import io
import math
import sys
from dataclasses import replace

import pytest
import tiny_models
import torch
from followed import CASES, FEW, PROMPT, edit_of, ids_of, model_of, run_by_hand, tolerance
from some_edits import same, weights

from tl_edit import EditRequest, attach, causal_trace, forward, logit_lens, next_tokens, show
from tl_edit.follow import NextTokens

each_case = pytest.mark.parametrize("case", CASES, ids=str)
ANSWER = "Constantinople, the capital"


def obvious(model, edit):
    """Log-probabilities ``[pos d_vocab]`` of the places that are followed by a token."""
    logits, _ = run_by_hand(model, f"{PROMPT} {ANSWER}", edit)
    return logits.double().log_softmax(-1)[:-1]


@each_case
def test_log_probabilities_ranks_and_the_divergence_are_those_of_whole_passes(case):
    model = model_of(case)
    edit = edit_of(model)
    found = next_tokens(model, PROMPT, ANSWER, edit=edit, top_k=3)
    ids = ids_of(model, f"{PROMPT} {ANSWER}")[0]
    limit = {"atol": tolerance(case), "rtol": 0}
    before, after = obvious(model, None), obvious(model, edit)
    assert found.runs == ("before", "after")
    assert found.n_prompt == ids_of(model, PROMPT).shape[1] < len(ids) - 1
    for i, log_probs in enumerate((before, after)):
        own = torch.stack([log_probs[pos, ids[pos + 1]] for pos in range(len(ids) - 1)])
        torch.testing.assert_close(found.log_prob[i].double(), own, **limit)
        for pos in range(len(ids) - 1):
            ranks = [int(v) for v in log_probs[pos].argsort(descending=True)]
            assert found.rank[i, pos] == 1 + ranks.index(int(ids[pos + 1]))
            said = tuple(model.tokenizer.decode([v]) for v in ranks[:3])
            assert tuple(text.strip() for text in found.top_tokens[i][pos]) == tuple(text.strip() for text in said)
            torch.testing.assert_close(found.top_log_prob[i, pos].double(), log_probs[pos, ranks[:3]], **limit)
        whole = sum(float(log_probs[pos, ids[pos + 1]]) for pos in range(found.n_prompt - 1, len(ids) - 1))
        assert float(found.answer_log_prob[i]) == pytest.approx(whole, abs=10 * tolerance(case))
    torch.testing.assert_close(found.kl.double(), (before.exp() * (before - after)).sum(-1), **limit)
    assert float(found.kl.max()) > 1e-3  # the edit does something


@each_case
def test_the_model_alone_says_what_plain_transformers_says(case):
    model = model_of(case)
    alone = next_tokens(model, PROMPT, ANSWER)
    plain = tiny_models.build_hf(case.family, model.cfg.d_vocab, dtype=torch.float64)
    with torch.no_grad():
        ids = ids_of(model, f"{PROMPT} {ANSWER}")
        log_probs = plain(ids).logits[0].double().log_softmax(-1)
    own = log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0]
    assert alone.runs == ("model",)
    assert alone.kl is None
    torch.testing.assert_close(alone.log_prob[0].double(), own, atol=2e-5, rtol=0)


def test_the_end_ranks_the_tokens_of_both_runs_and_the_answer():
    model = model_of(FEW[0])
    found = next_tokens(model, PROMPT, "Rome", edit=edit_of(model), top_k=2)
    after = found.end_log_prob[1].tolist()
    assert after == sorted(after, reverse=True)
    said = {token for run in found.top_tokens for token in run[found.n_prompt - 1]}
    assert set(found.end_tokens) == said | {" Rome"}
    at = found.end_tokens.index(" Rome")
    torch.testing.assert_close(found.end_log_prob[:, at], found.log_prob[:, found.n_prompt - 1])


def test_hooks_are_a_second_run_too():
    model = model_of(FEW[0])
    edit = edit_of(model)
    by_edit = next_tokens(model, PROMPT, "Rome", edit=edit)
    by_hooks = next_tokens(model, PROMPT, "Rome", hooks=edit.hooks(model))
    torch.testing.assert_close(by_hooks.log_prob, by_edit.log_prob, atol=1e-9, rtol=0)
    assert by_hooks.switched.endswith(" hooks")
    assert "test" in by_edit.switched


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_model_is_as_it_was_also_after_an_exception_in_the_middle(case):
    model = model_of(case)
    edit, before = edit_of(model), weights(model)
    mine = []

    def stop(act, hook=None):
        raise ZeroDivisionError

    with attach.attached(model, [("blocks.0.hook_mlp_out", lambda act, hook=None: mine.append(1))]):
        with pytest.raises(ZeroDivisionError):
            next_tokens(model, PROMPT, "Rome", edit=edit, hooks=[("blocks.1.hook_mlp_out", stop)])
        assert len(mine) == 2
        assert len(model.hook_dict["blocks.0.hook_mlp_out"].fwd_hooks) == 1
    assert same(weights(model), before)
    assert not edit.is_applied(model)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_an_edit_that_is_on_is_refused_and_stays_on():
    model = model_of(FEW[0])
    with edit_of(model).on(model) as edit:
        with pytest.raises(ValueError, match="is applied to this model.*undo"):
            next_tokens(model, PROMPT, "Rome", edit=edit)
        assert edit.is_applied(model)
        assert next_tokens(model, PROMPT, "Rome").runs == ("model",)


def test_what_cannot_be_asked_gets_advice():
    model = model_of(FEW[0])
    other = edit_of(tiny_models.build("gpt2", n_layers=2, seed=5))
    with pytest.raises(ValueError, match="expected the weights it was computed on"):
        next_tokens(model, PROMPT, "Rome", edit=other)
    with pytest.raises(ValueError, match="has a context of"):
        next_tokens(model, PROMPT * 60, "Rome")
    with pytest.raises(ValueError, match="it has no tokens; expected a word"):
        next_tokens(model, PROMPT, " ")
    with pytest.raises(ValueError, match="top_k is 0; expected an integer of 1 or more"):
        next_tokens(model, PROMPT, "Rome", top_k=0)
    with pytest.raises(ValueError, match="'blocks.9.hook_mlp_out' is not a hook point"):
        next_tokens(model, PROMPT, "Rome", hooks=[("blocks.9.hook_mlp_out", print)])
    with pytest.raises(ValueError, match="nothing was switched on"):
        next_tokens(model, PROMPT, "Rome").view_change()


def test_more_than_the_vocabulary_is_all_of_it():
    model = model_of(FEW[0])
    assert next_tokens(model, PROMPT, "Rome", top_k=10**6).top_log_prob.shape[2] == model.cfg.d_vocab


def test_positions_are_read_a_few_at_a_time(monkeypatch):
    model = model_of(FEW[0])
    edit, long = edit_of(model), " one" * 90
    whole = next_tokens(model, long, ANSWER, edit=edit)
    rows, log_probs = [], forward.log_probs

    def counted(model, logits):
        rows.append(len(logits))
        return log_probs(model, logits)

    monkeypatch.setattr(forward, "log_probs", counted)
    monkeypatch.setattr(sys.modules["tl_edit.follow.next_tokens"], "AT_ONCE", 7)
    parts = next_tokens(model, long, ANSWER, edit=edit)
    assert max(rows) == 7 < len(parts.tokens)
    for name in ("log_prob", "rank", "top_log_prob", "kl", "end_log_prob"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.top_tokens == whole.top_tokens


def test_of_many_likely_tokens_the_figure_shows_what_either_run_says_and_the_table_has_an_end():
    pytest.importorskip("matplotlib")
    model = model_of(FEW[0])
    found = next_tokens(model, PROMPT, "Rome", edit=edit_of(model), top_k=100)
    axis = found.plot()
    axis.figure.savefig(io.BytesIO())
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == 24
    note = f"({len(found.end_tokens) - 24:,} less likely ones are left out)"
    assert note in axis.get_xlabel().replace("\n", " ")
    assert "␣Rome" in labels
    end = found.n_prompt - 1
    for run in found.top_tokens:
        assert {show.spaced(token) for token in run[end][:8]} <= set(labels)
    # In the order of what is said after, as ever.
    shown = axis.collections[-1].get_offsets()[:, 0].tolist()
    assert shown == sorted(shown, reverse=True)
    html = found._repr_html_()
    assert "and 50 more" in html
    assert html.count("<tr") == 1 + 50 + 1
    assert "left out" not in next_tokens(model, PROMPT, "Rome").plot().get_xlabel()
    assert "more" not in next_tokens(model, PROMPT, "Rome")._repr_html_()


def test_hooks_of_an_edit_that_are_on_are_told_of():
    model = model_of(FEW[0])
    edit = edit_of(model)
    with (
        attach.attached(model, edit.hooks(model)),
        pytest.warns(UserWarning, match="hooks of an edit are on"),
    ):
        next_tokens(model, PROMPT, "Rome", edit=edit)


def test_long_texts_are_shown_from_their_end():
    model = model_of(FEW[0])
    n = 90
    found = next_tokens(model, " one" * n, "Rome", edit=edit_of(model), prepend_bos=False, top_k=2)
    assert len(found.title("Next")) < 140
    assert found.title("Next").endswith(" one one")
    long = made(tuple(str(i) for i in range(3)), ("d", "e"))
    whole = replace(
        long,
        tokens=tuple(str(i) for i in range(201)),
        log_prob=torch.zeros(2, 200),
        rank=torch.arange(1, 201).expand(2, -1),
        top_tokens=((("a",),) * 200,) * 2,
        top_log_prob=torch.zeros(2, 200, 1),
        kl=torch.zeros(200),
    )
    view = whole.view()
    assert view.parts[0].props["prompt"] == [str(i) for i in range(81, 201)]
    assert view.parts[0].props["correctTokenRank"] == list(range(81, 200))
    assert "81 first tokens are left out" in view.note


def test_a_bos_is_what_the_edit_was_computed_with():
    model = model_of(FEW[0])
    edit = edit_of(model)  # with one
    assert next_tokens(model, PROMPT, "Rome", edit=edit).tokens[0] == "<|endoftext|>"
    assert next_tokens(model, PROMPT, "Rome", edit=edit, prepend_bos=False).tokens[0] == "The"


def made(tokens, top) -> NextTokens:
    """By hand: two runs over three tokens, of which the last is the answer."""
    from tl_edit import host

    model = model_of(FEW[0])
    return NextTokens(
        prompt="".join(tokens[:-1]),
        tokens=tokens,
        runs=("before", "after"),
        switched="an edit",
        provenance=host.provenance(model, prepend_bos=True),
        answer=tokens[-1],
        n_prompt=2,
        log_prob=torch.tensor([[0.5, 0.25], [0.5, 0.75]]).log(),
        rank=torch.tensor([[1, 2], [1, 1]]),
        top_tokens=((top, top), (top, top)),
        top_log_prob=torch.tensor([[[0.5, 0.3], [0.5, 0.25]], [[0.5, 0.3], [0.75, 0.2]]]).log(),
        kl=torch.tensor([0.0, 0.3]),
        end_tokens=top,
        end_log_prob=torch.tensor([[0.5, 0.25], [0.75, 0.2]]).log(),
    )


HOSTILE = ("<bos>", "</script><script>x()</script>", "<img/src=x onerror=x()>")


def test_hostile_tokens_are_text_in_every_picture():
    result = made(HOSTILE, ("<b>", "$x^"))
    for html in (result._repr_html_(), result.view().static, result.view_change().static):
        assert not any(raw in html for raw in ("<bos>", "<script", "<img", "<b>"))
    assert "&lt;b&gt;" in result._repr_html_()
    for view in (result.view(), result.view_change()):
        script = view.markup()
        assert "</script><script>x()" not in script
        assert "<img" not in script
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axis = result.plot()
    axis.figure.savefig(io.BytesIO())
    assert [label.get_text() for label in axis.get_yticklabels()] == ["<b>", "$x^"]
    assert not pyplot.get_fignums()


def test_the_table_and_the_line_show_both_runs():
    result = made(("The", " tower is in", " Rome"), (" Rome", "Rome"))
    html = result._repr_html_()
    assert "p( Rome) 0.250 → 0.750" in html
    # Of tokens with and without a space in front one sees which is which.
    assert "␣Rome" in html
    assert ">Rome<" in html
    assert repr(result).endswith("says ' Rome' → ' Rome', p( Rome) 0.250 → 0.750)")
    assert math.isclose(float(result.answer_log_prob[1].exp()), 0.75, rel_tol=1e-6)


def test_ranks_are_from_one_as_in_traces_and_from_zero_in_the_component_which_says_so(fact_model):
    pytest.importorskip("pandas")
    asked = "The Eiffel Tower is located in"
    found = next_tokens(fact_model, asked, "Paris")
    traced = causal_trace(fact_model, asked, "Eiffel Tower", answer="Paris", n_samples=1, layers=[0])
    lens = logit_lens(fact_model, asked, ["Paris"])
    assert int(found.rank[0, -1]) == int(lens.rank[0, 0, -1, 0]) == traced.rank == 1
    assert list(found.to_dataframe()["rank"])[-1] == 1
    assert int(lens.to_dataframe()["rank"].iloc[-1]) == 1
    view = found.view()
    assert view.parts[0].props["correctTokenRank"][-1] == 0
    assert "ranks from 0, as circuitsvis counts them" in view.note
    assert ">1</td>" in view.static
    assert "redder, the likelier" in view.note


def test_the_change_of_each_token_stands_at_the_token():
    (part,) = made(("a", "b", "c"), ("d", "e")).view_change().parts
    assert part.props["values"] == [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0.25, 0.75]]
    assert part.props["positiveBounds"] == part.props["positiveBounds"][:1] * 3


def test_frames_have_a_row_for_each_run_and_position():
    pytest.importorskip("pandas")
    frame = made(("a", "b", "c"), ("d", "e")).to_dataframe()
    assert list(frame["run"]) == ["before", "before", "after", "after"]
    assert list(frame["next_token"]) == ["b", "c", "b", "c"]


def test_a_request_is_no_prompt():
    pytest.importorskip("jaxtyping")
    model = model_of(FEW[0])
    from jaxtyping import TypeCheckError

    with pytest.raises((TypeCheckError, ValueError)):
        next_tokens(model, EditRequest("{} is in", "Rome", "Paris"), "Rome")
