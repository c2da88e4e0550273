"""An edit that does not fit is refused by what the user called, with a remedy that it has."""

import functools

import pytest
import tiny_models
from some_edits import REQUEST, make_edit

from tl_edit import EditRecord, dose_response, edit_memory, evaluate, interference

RECORD = EditRecord(REQUEST)


def interfere(model, edit, **options):
    return interference(model, [edit, edit * 2], [RECORD, RECORD], progress=False, **options)


MISMATCH = {
    "dose_response": functools.partial(dose_response, records=RECORD, scales=(0, 1), progress=False),
    "edit_memory": functools.partial(edit_memory, texts=["The Louvre is in Paris"], progress=False),
    "interference": interfere,
}


@pytest.mark.parametrize("name", MISMATCH)
def test_who_has_allow_mismatch_names_it(name):
    model, edit = tiny_models.build("gpt2"), make_edit(tiny_models.build("gpt2", seed=7))
    with pytest.raises(ValueError, match=rf"^{name}: .*was computed on other weights.*pass allow_mismatch=True"):
        MISMATCH[name](model, edit=edit)
    MISMATCH[name](model, edit=edit, allow_mismatch=True)


def test_evaluate_names_hooks_and_does_not_add_an_edit_twice():
    model, edit = tiny_models.build("gpt2"), make_edit(tiny_models.build("gpt2", seed=7))
    with pytest.raises(ValueError, match=r"^evaluate: .*pass hooks=edit.hooks\(model, allow_mismatch=True\) in its"):
        evaluate(model, RECORD, edit=edit)
    evaluate(model, RECORD, hooks=edit.hooks(model, allow_mismatch=True))
    own = make_edit(model)
    with pytest.raises(ValueError, match=r"^evaluate: hooks has those of Edit.*twice"):
        evaluate(model, RECORD, edit=own, hooks=own.hooks())
    with own.on(model):
        with pytest.raises(ValueError, match=r"^evaluate: hooks has those of Edit.*twice"):
            evaluate(model, RECORD, edit=own, hooks=own.hooks())
        with pytest.warns(UserWarning, match=r"^evaluate: Edit.*applied to this model, and hooks adds it once more"):
            evaluate(model, RECORD, hooks=own.hooks())
