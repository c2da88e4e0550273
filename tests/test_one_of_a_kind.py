"""One is one, and not ones."""

import tiny_models

from tl_edit import attention_change, causal_trace, logit_lens
from tl_edit.counted import counted


def test_what_is_counted_has_an_s_where_it_is_not_one():
    assert [counted(n, "fact") for n in (0, 1, 2, 1500)] == ["0 facts", "1 fact", "2 facts", "1,500 facts"]


def test_results_of_one_thing_say_so():
    model = tiny_models.build("gpt2", n_layers=1)
    prompt, subject = "The Eiffel Tower is in", "Eiffel Tower"
    trace = causal_trace(model, prompt, subject, n_samples=1, kinds=("mlp_out",), positions="last")
    assert "1 kind x 1 layer x 1 position," in repr(trace)
    assert "1 sample)" in trace._repr_html_()
    assert repr(attention_change(model, prompt, heads=0)).endswith("1 layer of 1 head)")
    assert ": 1 layer, " in repr(logit_lens(model, prompt, ["Rome"]))
