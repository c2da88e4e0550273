"""Causal tracing against the plain definition, written out with the user's own hooks."""

import numpy as np
import pytest
import tiny_models
import torch

from tl_edit import causal_trace, tokenize_prompt
from tl_edit.trace import KINDS, window_layers

PROMPT, SUBJECT = "My friend saw the Space Needle in the city of", "Space Needle"


@pytest.fixture(scope="module", params=tiny_models.available_cases(("gpt2", "gpt_neox", "gemma2")), ids=str)
def model(request):
    return tiny_models.build(request.param)


def by_hand(model, kind, layers, position, noise_std, samples=10):
    """One cell: corrupted rows with one state put back, through the public hook API."""
    prompt = tokenize_prompt(model, PROMPT, SUBJECT)
    start, end = prompt.subject_span
    tokens = model.to_tokens(PROMPT)
    clean, hooks = {}, []
    for layer in layers:
        name = f"blocks.{layer}.hook_{kind}"

        def keep(act, hook, name=name):
            clean[name] = act.detach().clone()

        model.run_with_hooks(tokens, fwd_hooks=[(name, keep)])

        def put_back(act, hook, name=name):
            act = act.clone()
            act[:, position] = clean[name][0, position]
            return act

        hooks.append((name, put_back))

    def corrupt(act, hook):
        noise = np.random.RandomState(1).randn(samples, end - start, act.shape[-1])
        act = act.clone()
        act[:, start:end] = (act[:, start:end].double() + noise_std * torch.from_numpy(noise)).to(act.dtype)
        return act

    with torch.no_grad():
        answer = model(tokens)[0, -1].argmax()
        rows = model.run_with_hooks(tokens.repeat(samples, 1), fwd_hooks=[("hook_embed", corrupt), *hooks])
    return float(rows[:, -1].softmax(-1)[:, answer].double().mean())


def test_every_kind_equals_the_definition(model):
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=0.4, window=2)
    last = trace.subject_span[1] - 1
    for k, kind in enumerate(trace.kinds):
        for layer, position in ((0, last), (1, last), (2, len(trace.str_tokens) - 1), (1, 2)):
            layers = [layer] if kind == "resid_post" else window_layers(layer, 2, 3)
            expected = by_hand(model, kind, layers, position, 0.4)
            assert float(trace.restored_prob[k, layer, position]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert trace.corrupted_prob == pytest.approx(by_hand(model, "mlp_out", [], 0, 0.4), rel=1e-3)


def test_no_noise_gives_no_effect(model):
    trace = causal_trace(model, PROMPT, SUBJECT, noise=0.0, n_samples=2)
    assert trace.total_effect == pytest.approx(0, abs=1e-6)
    assert trace.indirect_effect.abs().max() < 1e-6


def test_restoring_the_last_state_of_the_last_token_is_the_clean_run(model):
    trace = causal_trace(model, PROMPT, SUBJECT, n_samples=3)
    assert float(trace.of("resid_post")[-1, -1]) == pytest.approx(trace.total_effect, rel=1e-4)


def test_positions_before_the_subject_have_no_effect(model):
    trace = causal_trace(model, PROMPT, SUBJECT, n_samples=3)
    assert trace.indirect_effect[:, :, : trace.subject_span[0]].abs().max() < 1e-6


def test_batches_do_not_matter_and_the_seed_does():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    whole, pieces, other = (
        causal_trace(model, PROMPT, SUBJECT, n_samples=4, batch_size=size, seed=seed).restored_prob
        for size, seed in ((1000, 1), (1, 1), (1000, 2))
    )
    assert torch.allclose(whole, pieces, rtol=1e-10)
    assert not torch.allclose(whole, other)


def test_noise_is_a_multiple_of_the_subjects_own_embedding_std():
    model = tiny_models.build("gpt2")
    trace = causal_trace(model, PROMPT, SUBJECT, n_samples=1)
    start, end = trace.subject_span
    tokens = model.to_tokens(PROMPT)
    _, cache = model.run_with_cache(tokens)
    assert trace.noise_std == pytest.approx(3 * float(cache["hook_embed"][0, start:end].double().std()), rel=1e-6)


def test_the_default_answer_is_the_prediction_and_another_can_be_traced():
    model = tiny_models.build("gpt2")
    predicted = model.tokenizer.decode([int(model(model.to_tokens(PROMPT))[0, -1].argmax())])
    assert causal_trace(model, PROMPT, SUBJECT, n_samples=1).answer == predicted
    rome = causal_trace(model, PROMPT, SUBJECT, answer="Rome", n_samples=1)
    assert rome.answer.strip() == "Rome"
    assert rome.kinds == KINDS


@pytest.mark.parametrize(
    ("layer", "window", "depth", "expected"),
    [
        (20, 10, 48, range(15, 25)),
        (2, 10, 48, range(7)),
        (47, 10, 48, range(42, 48)),
        (3, 3, 6, range(2, 5)),
        (1, 1, 6, range(1, 2)),
    ],
)
def test_windows_are_the_programs(layer, window, depth, expected):
    assert window_layers(layer, window, depth) == list(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": "Big Ben"}, "does not occur in"),
        ({"n_samples": 0}, "at least 1 sample"),
        ({"noise": -1.0}, "noise of 0 or more"),
        ({"window": 0}, "window 0"),
        ({"kinds": ()}, "expected some of resid_post"),
        ({"answer": "Constantinople"}, "is .* tokens"),
    ],
)
def test_bad_input_is_refused(options, message):
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=message):
        causal_trace(model, PROMPT, **({"subject": SUBJECT} | options))


def test_an_unknown_kind_of_a_result_is_refused():
    trace = causal_trace(tiny_models.build("gpt2"), PROMPT, SUBJECT, n_samples=1, kinds=("mlp_out",))
    assert trace.of("mlp_out").shape == (3, len(trace.str_tokens))
    with pytest.raises(ValueError, match="this trace has mlp_out"):
        trace.of("attn_out")
