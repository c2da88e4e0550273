"""What every function of this room refuses, and says of runs that are the same."""

import functools

import pytest
import tiny_models
from followed import ANSWERS, FEW, PROMPT, edit_of, model_of

from tl_edit import attention_change, edit_circuit, logit_lens, next_tokens

FOLLOW = {
    "next_tokens": functools.partial(next_tokens, prompt=PROMPT, answer="Rome"),
    "logit_lens": functools.partial(logit_lens, prompt=PROMPT, answers=ANSWERS),
    "attention_change": functools.partial(attention_change, prompt=PROMPT),
    "edit_circuit": functools.partial(edit_circuit, prompt=PROMPT, answer="Rome", other_answer="Paris"),
}
each_function = pytest.mark.parametrize("name", FOLLOW)


@each_function
def test_an_edit_of_another_model_is_refused_by_whom_it_was_given_to_with_a_remedy_that_is_there(name):
    model, other = model_of(FEW[0]), edit_of(tiny_models.build("gpt2", n_layers=3, seed=5))
    with pytest.raises(ValueError, match=rf"^{name}: .* was computed on .*expected the weights") as refused:
        FOLLOW[name](model, edit=other)
    assert "pass hooks=edit.hooks(model, allow_mismatch=True) in its place if this is meant" in str(refused.value)
    assert FOLLOW[name](model, hooks=other.hooks(model, allow_mismatch=True)).compares
    deeper = edit_of(tiny_models.build("gpt2", n_layers=5), layers=(4,))
    with pytest.raises(ValueError, match=rf"^{name} got layer 4; .* has layers 0 to 2"):
        FOLLOW[name](model, edit=deeper)


@each_function
def test_an_edit_is_not_added_twice(name):
    model = model_of(FEW[0])
    edit = edit_of(model)
    for hooks in (edit.hooks(), edit.hooks(model, positions=0)):
        with pytest.raises(ValueError, match=rf"^{name}: hooks has those of Edit.*twice.*edit \* 2"):
            FOLLOW[name](model, edit=edit, hooks=hooks)
    # Another edit's are what somebody may want.
    assert FOLLOW[name](model, edit=edit, hooks=edit_of(model, (2,)).hooks()).compares


@each_function
def test_hooks_of_an_edit_that_is_applied_are_told_of(name, recwarn):
    model = model_of(FEW[0])
    with edit_of(model).on(model) as edit:
        with pytest.warns(UserWarning, match=rf"^{name}: Edit.* is applied to this model, and hooks adds it once more"):
            FOLLOW[name](model, hooks=edit.hooks())
        recwarn.clear()
        # To take it away is what hooks with a negative scale are for.
        FOLLOW[name](model, hooks=edit.hooks(scale=-1))
        assert not recwarn.list
        with pytest.raises(ValueError, match=rf"^{name}: .*so there is no run without it"):
            FOLLOW[name](model, edit=edit)


@each_function
def test_an_edit_that_changes_nothing_is_said_to(name):
    model = model_of(FEW[0])
    edit = edit_of(model)
    for nothing in (edit * 0, edit - edit):
        found = FOLLOW[name](model, edit=nothing)
        assert found.unchanged
        assert repr(found).endswith("nothing changes)")
        html = found._repr_html_()
        assert "it changes nothing here: both runs are equal up to rounding" in html
        assert "+0.000" not in html or name == "edit_circuit"
        assert found.title("x").endswith("; nothing changes")
    for other in (FOLLOW[name](model, edit=edit), FOLLOW[name](model)):
        assert not other.unchanged
        assert "nothing changes" not in repr(other) + other.title("x")
        assert "changes nothing" not in other._repr_html_()


def test_where_nothing_changes_the_largest_parts_come_first():
    model = model_of(FEW[0])
    parts = [part.name for part in FOLLOW["edit_circuit"](model, edit=edit_of(model) * 0).components()]
    assert parts == [part.name for part in FOLLOW["edit_circuit"](model).components()]
    assert "most from" in repr(FOLLOW["edit_circuit"](model, edit=edit_of(model) * 0))


def test_no_head_is_listed_where_none_looks_elsewhere():
    model = model_of(FEW[0])
    html = FOLLOW["attention_change"](model, edit=edit_of(model), layers=[0])._repr_html_()
    assert "+0.000" not in html
    assert "Heads whose attention changes:" in html
