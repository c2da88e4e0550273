"""The logit lens, against the final norm and the unembedding called by hand on states of an ordinary cache."""

import dataclasses
import io

import pytest
import tiny_models
import torch
from followed import (
    ANSWERS,
    CASES,
    FEW,
    PROMPT,
    SUBJECT,
    edit_of,
    first_of,
    hooks_left,
    ids_of,
    kept_at_once,
    model_of,
    run_by_hand,
    tolerance,
)
from some_edits import same, weights

from tl_edit import attention_change, edit_circuit, forward, logit_lens, next_tokens, tokenize_prompt
from tl_edit.follow import LogitLens
from tl_edit.follow.lens import LAST
from tl_edit.follow.lens import SUBJECT as AT_SUBJECT

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def read_by_hand(model, case, state):
    """Log-probabilities of a state ``[d_model]``: the final norm, the unembedding, and Gemma 2's cap."""
    with torch.no_grad():
        logits = model.unembed(model.ln_final(state[None, None]))[0, 0].double()
    if case.family == "gemma2":
        logits = 30 * (logits / 30).tanh()
    return logits.log_softmax(-1)


@each_case
def test_each_state_is_read_as_the_model_ends(case):
    model = model_of(case)
    edit = edit_of(model)
    found = logit_lens(model, PROMPT, ANSWERS, edit=edit, subject=SUBJECT)
    where = [ids_of(model, PROMPT).shape[1] - 1, tokenize_prompt(model, PROMPT, SUBJECT).subject_last]
    firsts = [first_of(model, answer) for answer in ANSWERS]
    assert found.log_prob.shape == (2, 2, 4, 2)
    assert found.points == ("embed", "0", "1", "2")
    for i, switched in enumerate((None, edit)):
        logits, cache = run_by_hand(model, PROMPT, switched)
        names = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(3))]
        for point, name in enumerate(names):
            for at, position in enumerate(where):
                log_probs = read_by_hand(model, case, cache[name][0, position])
                read = found.log_prob[i, at, point].double()
                torch.testing.assert_close(read, log_probs[firsts], atol=5 * tolerance(case), rtol=0)
                ranks = [1 + int((log_probs > log_probs[first]).sum()) for first in firsts]
                assert found.rank[i, at, point].tolist() == ranks
        # After the last layer it is what the model says.
        said = logits[where].double().log_softmax(-1)[:, firsts]
        torch.testing.assert_close(found.log_prob[i, :, -1].double(), said, atol=tolerance(case), rtol=0)
    # Nothing comes before the edited layer.
    torch.testing.assert_close(found.log_prob[0, :, :2], found.log_prob[1, :, :2], atol=1e-9, rtol=0)
    assert float((found.log_prob[0, :, 2] - found.log_prob[1, :, 2]).abs().max()) > 1e-3


@each_case
def test_the_last_layer_is_what_plain_transformers_says(case):
    model = model_of(case)
    plain = tiny_models.build_hf(case.family, model.cfg.d_vocab, dtype=torch.float64)
    with torch.no_grad():
        said = plain(ids_of(model, PROMPT)).logits[0, -1].double().log_softmax(-1)
    firsts = [first_of(model, answer) for answer in ANSWERS]
    read = logit_lens(model, PROMPT, ANSWERS).log_prob[0, 0, -1].double()
    torch.testing.assert_close(read, said[firsts], atol=2e-5, rtol=0)


def test_the_difference_is_that_of_logits():
    model = model_of(FEW[0])
    found = logit_lens(model, PROMPT, ANSWERS)
    logits, _ = run_by_hand(model, PROMPT)
    first, second = (logits[-1, first_of(model, answer)] for answer in ANSWERS)
    torch.testing.assert_close(found.logit_difference[0, 0, -1].double(), first - second, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="there is one answer; expected two or more"):
        _ = logit_lens(model, PROMPT, ["Rome"]).logit_difference


def test_states_are_read_in_several_passes_where_logits_are_large(monkeypatch):
    model = model_of(FEW[0])
    whole = logit_lens(model, PROMPT, ANSWERS, subject=SUBJECT)
    monkeypatch.setattr(forward, "LOGIT_BYTES", 1)  # one row at a time
    parts = logit_lens(model, PROMPT, ANSWERS, subject=SUBJECT)
    torch.testing.assert_close(parts.log_prob, whole.log_prob, atol=1e-9, rtol=0)


def test_the_subject_is_the_edits_own_if_it_is_in_the_prompt():
    model = model_of(FEW[0])
    edit = edit_of(model)  # of "The Eiffel Tower"
    assert logit_lens(model, PROMPT, ANSWERS, edit=edit).places == (LAST, AT_SUBJECT)
    assert logit_lens(model, "The Louvre is in", ANSWERS, edit=edit).places == (LAST,)
    assert logit_lens(model, PROMPT, ANSWERS).places == (LAST,)


def test_what_cannot_be_read_gets_advice():
    model = model_of(FEW[0])
    with pytest.raises(ValueError, match="'Louvre' does not occur in"):
        logit_lens(model, PROMPT, ANSWERS, subject="Louvre")
    with pytest.raises(ValueError, match=r"'Rome' and 'Rome,' begin with the same token, ' Rome'.*differ"):
        logit_lens(model, PROMPT, ["Rome", "Rome,"])
    with pytest.raises(ValueError, match=r"answers is \[\]; expected a list of one or more"):
        logit_lens(model, PROMPT, [])
    with pytest.raises(ValueError, match="nothing was read at the place 'first'.*'last token'"):
        logit_lens(model, PROMPT, ANSWERS).plot(place="first")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_the_model_is_as_it_was_after_an_exception_in_any_pass(case):
    model = model_of(case)
    edit, before = edit_of(model), weights(model)
    for last in (1, 2):
        calls = []

        def stop(act, hook=None, last=last, calls=calls):
            calls.append(act)
            if len(calls) == last:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            logit_lens(model, PROMPT, ANSWERS, edit=edit, hooks=[("ln_final.hook_scale", stop)])
        assert same(weights(model), before)
        assert hooks_left(model) == []


def made(log_prob) -> LogitLens:
    """By hand, two runs of two answers after two points."""
    from tl_edit import host

    values = torch.tensor(log_prob)
    return LogitLens(
        prompt="<b>$x^",
        tokens=("<b>", "$x^"),
        runs=("before", "after"),
        switched="",
        provenance=host.provenance(model_of(FEW[0]), prepend_bos=True),
        answers=("</script>", "Paris"),
        answer_tokens=("</", " Paris"),
        places=(LAST,),
        points=("embed", "0"),
        log_prob=values,
        rank=torch.ones_like(values).long(),
    )


def test_pictures_show_the_odds_of_two_answers_and_their_change():
    result = made([[[[-1.0, -2.0], [-4.0, -1.0]]], [[[-1.0, -2.0], [-0.5, -3.5]]]])
    torch.testing.assert_close(result.logit_difference, torch.tensor([[[1.0, -3.0]], [[1.0, 3.0]]]))
    html = result._repr_html_()
    assert 'title="change, 0: 6.0000"' in html
    assert 'title="before, 0: -3.0000"' in html
    assert "colours from -6 (red) to 6 (blue)" in html
    assert "log p(&lt;/ of &lt;/script&gt;) − log p(Paris)" in html
    assert "<b>" not in html
    assert "</script>" not in html


def test_of_one_answer_the_table_has_probabilities_as_the_embeddings_logarithm_would_fill_the_scale():
    two = made([[[[-37.0, -2.0], [-2.0, -1.0]]], [[[-37.0, -2.0], [-0.5, -3.5]]]])
    result = dataclasses.replace(
        two, answers=("</script>",), answer_tokens=("</",), log_prob=two.log_prob[..., :1], rank=two.rank[..., :1]
    )
    html = result._repr_html_()
    assert "Logit lens, p(&lt;/ of &lt;/script&gt;)" in html
    assert 'title="before, 0: 0.1353"' in html
    assert 'title="after, 0: 0.6065"' in html
    assert "probability, read after each layer; colours from -0.607 (red) to 0.607 (blue)" in html


def test_lines_are_one_for_each_answer_and_run():
    pytest.importorskip("matplotlib")
    axis = made([[[[-1.0, -2.0], [-4.0, -1.0]]], [[[-1.0, -2.0], [-0.5, -3.5]]]]).plot()
    axis.figure.savefig(io.BytesIO())
    assert [line.get_ydata().tolist() for line in axis.lines] == [[-1, -4], [-1, -0.5], [-2, -1], [-2, -3.5]]
    assert axis.lines[0].get_color() == axis.lines[1].get_color() != axis.lines[2].get_color()
    # What is drawn is the first token's.
    assert axis.lines[0].get_label() == "</ of </script>, before"
    assert axis.lines[2].get_label() == "Paris, before"


def test_of_an_answer_of_several_tokens_the_first_is_named():
    found = made([[[[-1.0, -2.0], [-4.0, -9.0]]], [[[-1.0, -2.0], [-4.0, -9.0]]]])
    assert "p(</ of </script>) 0.0183 → 0.0183, p(Paris) 0.000123 → 0.000123" in repr(found)


def test_frames_name_every_axis():
    pytest.importorskip("pandas")
    frame = made([[[[-1.0, -2.0], [-4.0, -1.0]]], [[[-1.0, -2.0], [-0.5, -3.5]]]]).to_dataframe()
    row = frame[(frame["run"] == "after") & (frame["point"] == "0") & (frame["answer"] == "Paris")]
    assert float(row["log_prob"].iloc[0]) == -3.5
    assert len(frame) == 8


def test_of_states_only_those_that_are_read_are_kept():
    model = tiny_models.build("gpt2", n_layers=6)
    n = ids_of(model, PROMPT).shape[1]
    assert kept_at_once(model, lambda hooks: logit_lens(model, PROMPT, ANSWERS, hooks=hooks), (n, 32)) <= 1


def test_a_long_prompt_of_several_lines_is_one_line():
    model = model_of(FEW[0])
    prompt = "The Eiffel Tower\n" * 4 + "is in"
    for found in (
        logit_lens(model, prompt, ANSWERS),
        next_tokens(model, prompt, "Rome"),
        attention_change(model, prompt, layers=[0]),
        edit_circuit(model, prompt, *ANSWERS),
    ):
        assert "\n" not in repr(found)
        assert "↵" in repr(found)
        # Of long prompts the end is shown.
        longer = dataclasses.replace(found, prompt="x" * 5000 + " is in")
        assert len(repr(longer)) < 400
        assert " is in" in repr(longer)
