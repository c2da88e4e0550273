"""The table of an edit in a notebook."""

import dataclasses
from html import unescape

import pytest

from tl_edit import (
    AlphaEditConfig,
    EditRequest,
    EMMETConfig,
    MEMITConfig,
    PMETConfig,
    ROMEConfig,
    alpha_edit,
    emmet_edit,
    memit_edit,
    pmet_edit,
    rome_edit,
    second_moment,
)
from tl_edit.edit.value import MEANINGS
from tl_edit.factworld import fact_texts

REQUEST = EditRequest("The {} is located in", "Eiffel Tower", target_new="Rome", target_true="Paris")
METHODS = {
    rome_edit: ROMEConfig,
    memit_edit: MEMITConfig,
    emmet_edit: EMMETConfig,
    alpha_edit: AlphaEditConfig,
    pmet_edit: PMETConfig,
}


@pytest.fixture(scope="module")
def moments(fact_model):
    return second_moment(fact_model, fact_texts(), [0], progress=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_number_says_what_it_means(method, fact_model, moments):
    known = METHODS[method].for_model(fact_model)
    own = {"layer": 0} if method is rome_edit else {"layers": (0,)}
    config = dataclasses.replace(known, v_num_grad_steps=2, n_prefixes=0, **own)
    quiet = {} if method is rome_edit else {"progress": False}
    edit = method(fact_model, REQUEST, moments, config=config, apply=False, **quiet)
    html = edit._repr_html_()
    shown = [name for name in edit.diagnostics if f">{name}</th>" in html]
    assert len(shown) >= 3
    for name in (*shown, "norm", "rank"):
        row = html[html.index(f">{name}</th>") :].split("</tr>")[0]
        assert MEANINGS[name] in unescape(row)
    # What says what it is itself has none.
    assert html[html.index(">method</th>") :].split("</tr>")[0].endswith("></td>")
