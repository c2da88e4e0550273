"""Causal tracing against the oracle: every architecture, engine, kind, window, corruption and measure."""

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from oracles import trace as oracle

from tl_edit import Noise, applied_edits, causal_trace, embedding_std, host, tokenize_prompt
from tl_edit.blocks import blocks_of, tolerance
from tl_edit.trace import KINDS, window_layers

PROMPT, SUBJECT = "My friend saw the Space Needle in the city of", "Space Needle"
COUNTERFACTUAL = "My friend saw the Needle Space in the city of"
STD = 0.4
shared = functools.cache(tiny_models.build)
each_case = pytest.mark.parametrize("case", tiny_models.available_cases(), ids=str)

needs_hooked = pytest.mark.skipif(
    tiny_models.HOOKED_TRANSFORMER not in tiny_models.interfaces(), reason="TransformerLens has no HookedTransformer"
)

FLOAT32_STEPS = ("llama", "gemma2", "qwen2", "qwen3", "opt", "gptj", "gpt_neo", "phi")
"""Families whose Hugging Face code has steps in float32 whatever the dtype."""


def precision(case):
    """The dtype to compare in, and the relative error that it allows."""
    exact = case.interface == tiny_models.HOOKED_TRANSFORMER or case.family not in FLOAT32_STEPS
    return (torch.float64, 1e-10) if exact else (torch.float32, 1e-5)


def kept_layers(kind, layer, window, depth=3):
    return [layer] if kind == "resid_post" else window_layers(layer, window, depth)


def expected(model, kind, layers, position, *, std=STD, samples=3, bos=None, corrupt=None, rows=None, severed=None):
    """Probabilities of the predicted token, by sample."""
    prompt = tokenize_prompt(model, PROMPT, SUBJECT, prepend_bos=bos)
    tokens = prompt.tokens[None]
    with torch.no_grad():
        answer = oracle.run(model, tokens, [])[0, -1].argmax()
    corrupt = [oracle.gaussian(prompt.subject_span, std, samples)] if corrupt is None else corrupt
    rows = tokens.repeat(samples, 1) if rows is None else rows
    logits = oracle.cell(model, tokens, rows, corrupt, kind, layers, position, severed=severed)
    return logits.softmax(-1)[:, answer]


def close(found, wanted, relative):
    assert float(((found - wanted).abs() / wanted).max()) < relative


# --- against the oracle --------------------------------------------------------------------------------


@each_case
def test_the_blocks_engine_equals_the_oracle(case):
    dtype, relative = precision(case)
    model = shared(case, dtype=dtype)
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, window=2, n_samples=3, keep_samples=True)
    assert trace.engine.startswith("blocks"), trace.engine
    last, end = trace.subject_last, len(trace.str_tokens) - 1
    for k, kind in enumerate(KINDS):
        for layer, position in ((0, last), (1, last), (2, last), (2, end), (0, end), (1, last - 1), (1, 2)):
            wanted = expected(model, kind, kept_layers(kind, layer, 2), position)
            close(trace.restored_samples[k, layer, position], wanted, relative)
    close(trace.corrupted_samples, expected(model, "resid_post", [], 0), relative)


@each_case
def test_the_plain_engine_equals_the_blocks_engine(case):
    dtype, relative = precision(case)
    model = shared(case, dtype=dtype)
    fast, plain = (
        causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=2, engine=engine)
        for engine in ("auto", "plain")
    )
    assert plain.engine == "plain hooks (asked for)"
    close(plain.restored, fast.restored, relative)
    assert plain.clean == pytest.approx(fast.clean, rel=relative)


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama", "gpt_neox", "gemma2")), ids=str)
@pytest.mark.parametrize("bos", [True, False])
def test_with_and_without_bos_and_with_every_padding_side(case, bos):
    model = tiny_models.build(case)
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        trace = causal_trace(
            model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1, prepend_bos=bos, positions="subject_last"
        )
        for k, kind in enumerate(KINDS):
            wanted = expected(model, kind, [1], trace.subject_last, bos=bos).mean()
            assert float(trace.restored_prob[k, 1, 0]) == pytest.approx(float(wanted), rel=1e-5)
        assert trace.provenance.prepend_bos is bos


@pytest.mark.parametrize("window", [1, 2, 3, 6])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_windows(window, engine):
    model = shared("gpt2", dtype=torch.float64, n_layers=6)
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, window=window, n_samples=3, engine=engine)
    for k, kind in enumerate(KINDS):
        for layer in range(6):
            wanted = expected(model, kind, kept_layers(kind, layer, window, 6), trace.subject_last).mean()
            found = trace.restored_prob[k, layer, trace.subject_last]
            assert float(found) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize("severed", ["mlp_out", "attn_out"])
@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "gpt_neox", "gemma2")), ids=str)
def test_severed_states_stay_corrupted(case, severed):
    dtype, relative = precision(case)
    model = shared(case, dtype=dtype)
    for engine in ("auto", "plain"):
        trace = causal_trace(
            model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, kinds=("resid_post",), severed=severed, engine=engine
        )
        for layer in range(3):
            for position in (trace.subject_last, len(trace.str_tokens) - 1):
                wanted = expected(model, "resid_post", [layer], position, severed=severed).mean()
                found = float(trace.restored_prob[0, layer, position])
                assert found == pytest.approx(float(wanted), rel=max(relative, 1e-9))


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
def test_a_counterfactual_prompt(case, engine):
    model = shared(case)
    trace = causal_trace(model, PROMPT, SUBJECT, counterfactual=COUNTERFACTUAL, engine=engine, window=1)
    rows = tokenize_prompt(model, COUNTERFACTUAL, "Needle Space").tokens[None]
    for k, kind in enumerate(KINDS):
        for layer, position in ((0, trace.subject_last), (2, len(trace.str_tokens) - 1), (1, 1)):
            wanted = expected(model, kind, [layer], position, corrupt=[], rows=rows)
            assert float(trace.restored_prob[k, layer, position]) == pytest.approx(float(wanted), rel=1e-5)
    assert trace.n_samples == 1
    assert trace.noise_std is None


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_noise_in_place_of_the_embeddings(engine):
    model = shared("gpt2", dtype=torch.float64)
    noise = Noise.gaussian(std=STD, replace=True)
    trace = causal_trace(model, PROMPT, SUBJECT, noise=noise, n_samples=3, engine=engine)
    corrupt = [oracle.gaussian(trace.subject_span, STD, 3, replace=True)]
    wanted = expected(model, "resid_post", [1], trace.subject_last, corrupt=corrupt).mean()
    assert float(trace.restored_prob[0, 1, trace.subject_last]) == pytest.approx(float(wanted), rel=1e-10)


# --- measures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("measure", ["log_prob", "logit_diff", "kl"])
def test_measures(measure, engine):
    model = shared("gpt2", dtype=torch.float64)
    other = "Rome" if measure == "logit_diff" else None
    trace = causal_trace(
        model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, measure=measure, other_answer=other, engine=engine
    )
    prompt = tokenize_prompt(model, PROMPT, SUBJECT)
    tokens = prompt.tokens[None]
    with torch.no_grad():
        clean = model(tokens)[0, -1].log_softmax(-1)
    answer, second = clean.argmax(), model.to_tokens(" Rome", prepend_bos=False)[0, 0]

    def value(logits):
        rows = logits.log_softmax(-1)
        if measure == "log_prob":
            return rows[:, answer].mean()
        if measure == "logit_diff":
            return (rows[:, answer] - rows[:, second]).mean()
        return -(clean.exp() * (clean - rows)).sum(-1).mean()

    corrupt = [oracle.gaussian(prompt.subject_span, STD, 3)]
    rows = tokens.repeat(3, 1)
    wanted = value(oracle.cell(model, tokens, rows, corrupt, "mlp_out", [1], trace.subject_last))
    assert float(trace.restored[1, 1, trace.subject_last]) == pytest.approx(float(wanted), rel=1e-9)
    assert trace.corrupted == pytest.approx(
        float(value(oracle.cell(model, tokens, rows, corrupt, "", [], 0))), rel=1e-9
    )
    assert trace.clean == pytest.approx(float(value(clean[None])), rel=1e-9, abs=1e-12)
    assert trace.clean_prob == pytest.approx(float(clean[answer].exp()), rel=1e-9)
    assert trace.total_effect == trace.clean - trace.corrupted


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_answers_of_several_tokens_are_traced_by_their_joint_probability(family, engine):
    case = tiny_models.available_cases([family])[0]
    dtype, relative = precision(case)
    model, relative = shared(case, dtype=dtype), 10 * relative
    prompt = tokenize_prompt(model, PROMPT, SUBJECT)
    tokens = model.to_tokens(f"{PROMPT} Constantinople")
    start = len(prompt.tokens)
    assert tokens.shape[1] > start + 1
    with pytest.warns(UserWarning, match=r"does not predict 'Constantinople' .* it ranks \d+"):
        trace = causal_trace(
            model, PROMPT, SUBJECT, answer="Constantinople", noise_std=STD, n_samples=3, window=1, engine=engine
        )
    assert trace.answer.strip() == "Constantinople"
    assert trace.rank > 1
    assert trace.restored.shape[-1] == start

    def joint(logits):
        rows = logits.double().log_softmax(-1)[:, start - 1 : -1]
        return rows.gather(-1, tokens[:, start:].expand(len(rows), -1)[..., None]).sum((1, 2)).exp().mean()

    with torch.no_grad():
        assert trace.clean_prob == pytest.approx(float(joint(model(tokens))), rel=relative)
        corrupt = oracle.gaussian(prompt.subject_span, STD, 3)
        for kind, layer, position in (("resid_post", 0, prompt.subject_last), ("attn_out", 2, start - 1)):
            key = oracle.name(kind, layer)
            clean = oracle.states(model, tokens, [], [key])[key]
            hooks = [corrupt, (key, oracle.put_back(clean, position))]
            wanted = joint(model.run_with_hooks(tokens.repeat(3, 1), fwd_hooks=hooks))
            found = trace.restored_prob[KINDS.index(kind), layer, position]
            assert float(found) == pytest.approx(float(wanted), rel=relative)


def test_the_default_answer_is_the_prediction_and_another_is_traced_with_a_warning():
    model = shared("gpt2")
    predicted = model.tokenizer.decode([int(model(model.to_tokens(PROMPT))[0, -1].argmax())])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert causal_trace(model, PROMPT, SUBJECT, n_samples=1).answer == predicted
    with pytest.warns(UserWarning, match=r"'Rome' .* ranks \d+, and the model says"):
        rome = causal_trace(model, PROMPT, SUBJECT, answer="Rome", n_samples=1)
    log_probs = model(model.to_tokens(PROMPT))[0, -1]
    token = model.to_tokens(" Rome", prepend_bos=False)[0, 0]
    assert rome.rank == 1 + int((log_probs > log_probs[token]).sum())


def run_alone(*arguments):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)


def test_the_warning_points_at_the_line_that_asked(tmp_path):
    """In a process of its own: the test run's shape checks add frames."""
    script = tmp_path / "asks.py"
    script.write_text(
        "import tiny_models, tl_edit\n"
        "model = tiny_models.build('gpt2')\n"
        f"tl_edit.causal_trace(model, {PROMPT!r}, {SUBJECT!r}, answer='Rome', n_samples=1)\n",
        "utf-8",
    )
    said = run_alone(str(script)).stderr
    assert f"{script}:3: UserWarning: causal_trace: the model does not predict 'Rome'" in said


def test_the_rank_of_an_answer_of_several_tokens_is_that_of_its_least_likely_one():
    model = shared("gpt2")
    first = model.tokenizer.decode([int(model(model.to_tokens(PROMPT))[0, -1].argmax())])
    with pytest.warns(UserWarning, match=r"it ranks \d+"):
        trace = causal_trace(model, PROMPT, SUBJECT, answer=first.strip() + " Angela Merkel", n_samples=1)
    assert trace.rank > 1


def test_a_subject_that_is_a_part_of_a_word_is_noticed():
    model = shared("gpt2")
    with pytest.warns(UserWarning, match=r"'is' stands in 'Paris is in' first as a part of 'Paris'; the tokens"):
        causal_trace(model, "Paris is in", "is", n_samples=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        causal_trace(model, "(Paris) is in", "Paris", n_samples=1)


def test_numbers_of_numpy_and_torch_are_as_good_as_pythons():
    """In a process of its own: the test run's type checks take Python's only."""
    code = f"""
import numpy as np, tiny_models, torch
from tl_edit import Noise, causal_trace
from same_trace import same_trace
noises = [Noise.gaussian(np.float32(3)), Noise.gaussian(3)]
noises += [Noise.uniform(np.int64(3)), Noise.gaussian(std=np.float16(3))]
print(*(repr(number) for noise in noises for number in (noise.multiple, noise.std, noise.bound)))
model, given = tiny_models.build("gpt2"), ({PROMPT!r}, {SUBJECT!r})
numbers = dict(layers=np.arange(2), positions=torch.tensor([3, 1]), window=np.int64(1), n_samples=np.int32(2))
trace = causal_trace(model, *given, seed=torch.tensor(2), noise_std=np.float32(0.5), **numbers)
same = causal_trace(
    model, *given, seed=2, noise_std=0.5, layers=[0, 1], positions=[3, 1], window=1, n_samples=2
)
print(same_trace(trace, same), *(type(number).__name__ for number in (*trace.layers, *trace.positions, trace.window)))
"""
    noises, traces = run_alone("-c", code).stdout.splitlines()
    assert noises == "3.0 None 0.0 3.0 None 0.0 3.0 None 3.0 3.0 3.0 0.0"
    assert traces.split() == ["True", *["int"] * 5]


# --- invariants ----------------------------------------------------------------------------------------


@each_case
def test_no_noise_gives_no_effect(case):
    trace = causal_trace(shared(case), PROMPT, SUBJECT, noise=0.0, n_samples=2, window=2)
    assert trace.total_effect == pytest.approx(0, abs=1e-6)
    assert trace.indirect_effect.abs().max() < 1e-6


@each_case
def test_restoring_the_last_state_of_the_last_token_is_the_clean_run(case):
    trace = causal_trace(shared(case), PROMPT, SUBJECT, n_samples=3, noise_std=STD)
    assert float(trace.of("resid_post")[-1, -1]) == pytest.approx(trace.total_effect, rel=1e-4, abs=2e-6)


def test_positions_before_the_subject_have_no_effect():
    trace = causal_trace(shared("gpt2"), PROMPT, SUBJECT, n_samples=3, noise_std=STD)
    assert trace.indirect_effect[:, :, : trace.subject_span[0]].abs().max() == 0


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_memory_does_not_matter_and_the_seed_does(engine):
    model = shared("gpt2", dtype=torch.float64)
    whole, pieces, single, other = (
        causal_trace(model, PROMPT, SUBJECT, n_samples=4, max_rows=size, seed=seed, engine=engine).restored_prob
        for size, seed in ((10**6, 1), (300, 1), (1, 1), (10**6, 2))
    )
    assert torch.allclose(whole, pieces, rtol=1e-11)
    assert torch.allclose(whole, single, rtol=1e-11)
    assert not torch.allclose(whole, other)


def test_some_layers_and_positions_are_cut_from_the_whole():
    model = shared("gpt2", dtype=torch.float64)
    whole = causal_trace(model, PROMPT, SUBJECT, n_samples=2)
    start, end = whole.subject_span
    for where, listed in (
        ("subject_last", [end - 1]),
        ("subject", list(range(start, end))),
        ("last", [len(whole.str_tokens) - 1]),
        ([0, end], [0, end]),
    ):
        part = causal_trace(model, PROMPT, SUBJECT, n_samples=2, positions=where, layers=[2, 0], kinds=("mlp_out",))
        assert part.positions == tuple(listed)
        assert torch.allclose(part.restored[0], whole.restored[1][[2, 0]][:, listed], rtol=1e-11)
        assert part.marked_tokens()[-1].endswith("*") == (start <= listed[-1] < end)


def test_noise_is_a_multiple_of_the_subjects_own_embedding_std():
    model = shared("gpt2")
    trace = causal_trace(model, PROMPT, SUBJECT, n_samples=1)
    _, cache = model.run_with_cache(model.to_tokens(PROMPT))
    own = cache["hook_embed"][0, slice(*trace.subject_span)].double().std()
    assert trace.noise_std == pytest.approx(3 * float(own), rel=1e-6)


@pytest.mark.parametrize("case", tiny_models.available_cases(("mixtral",)), ids=str)
def test_mixtures_of_experts_can_be_traced(case):
    model = tiny_models.build(case)
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=2)
    wanted = expected(model, "mlp_out", [1], trace.subject_last, samples=2).mean()
    assert float(trace.restored_prob[1, 1, trace.subject_last]) == pytest.approx(float(wanted), rel=1e-4)


# --- hooks and edits that are there --------------------------------------------------------------------


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama", "opt")), ids=str)
def test_your_hooks_count_and_stay(case):
    model = tiny_models.build(case)
    without = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1)
    head = "blocks.1.attn.hook_z"
    point = model.hook_dict[head]
    before = list(point.fwd_hooks)

    def ablate(act, hook):
        act = act.clone()
        act[..., :8] = 0
        return act

    point.add_hook(ablate)
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1)
    assert trace.engine.startswith("plain hooks (a hook is attached at ")
    assert len(point.fwd_hooks) == len(before) + 1
    assert not torch.allclose(trace.restored, without.restored, rtol=1e-3)
    for kind, layer in (("resid_post", 0), ("mlp_out", 1)):
        wanted = expected(model, kind, [layer], trace.subject_last).mean()
        found = trace.restored_prob[KINDS.index(kind), layer, trace.subject_last]
        assert float(found) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2",)), ids=str)
@pytest.mark.parametrize("attach", ["register_forward_hook", "register_forward_pre_hook"])
def test_plain_torch_hooks_count_too(case, attach):
    model = tiny_models.build(case)
    seen = []
    handle = getattr(model.blocks[1], attach)(lambda *args: seen.append(args[0]) and None)
    trace = causal_trace(model, PROMPT, SUBJECT, n_samples=1)
    assert "a hook is attached at" in trace.engine
    assert seen
    handle.remove()
    assert causal_trace(model, PROMPT, SUBJECT, n_samples=1).engine.startswith("blocks")


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
def test_applied_edits_count(case):
    model = tiny_models.build(case)
    base = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1)
    new = host.w_out(model, 1).clone()
    new[:20] *= -1
    host.write_w_out(model, 1, new)
    assert not applied_edits(model)
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1)
    assert trace.engine.startswith("blocks")
    assert not torch.allclose(trace.restored, base.restored, rtol=1e-3)
    wanted = expected(model, "mlp_out", [1], trace.subject_last).mean()
    assert float(trace.restored_prob[1, 1, trace.subject_last]) == pytest.approx(float(wanted), rel=1e-4)


@each_case
def test_nothing_of_the_model_changes(case):
    model = tiny_models.build(case)
    hooked_transformer = case.interface == tiny_models.HOOKED_TRANSFORMER
    model.train(hooked_transformer)  # which is how it is after loading, and without dropout
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    causal_trace(model, PROMPT, SUBJECT, n_samples=2)
    assert model.training is hooked_transformer
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(module._forward_pre_hooks for module in model.blocks)


def test_a_model_whose_blocks_cannot_be_called_alone_is_traced_plainly(monkeypatch):
    model = tiny_models.build("gpt2")
    block, calls = model.blocks[1], iter(range(1, 10**6))
    forward = block.forward

    def moody(*arguments, **keywords):
        # Another result every time: what was recorded cannot be found again.
        return forward(*arguments, **keywords) * (1 + 0.1 * next(calls))

    monkeypatch.setitem(vars(block), "forward", moody)
    trace = causal_trace(model, PROMPT, SUBJECT, n_samples=2)
    assert trace.engine.startswith("plain hooks (its blocks, called alone, are off by"), trace.engine


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "gpt_neox", "llama")), ids=str)
def test_the_models_own_blocks_give_the_same(case, monkeypatch):
    dtype, relative = precision(case)
    model = shared(case, dtype=dtype)

    unpacked = functools.partial(blocks_of, packed=False)
    best = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=2)
    monkeypatch.setattr("tl_edit.trace.run.blocks_of", unpacked)
    own = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=2)
    assert own.engine == "blocks (the model's own blocks)"
    close(own.restored, best.restored, relative)


@needs_hooked
def test_a_module_of_your_own_is_called_as_it_is():
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, resid):
            return 2 * self.inner(resid)

    model = tiny_models.build("gpt2", dtype=torch.float64)
    before = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1)
    assert before.engine == "blocks (packed weights)"
    model.blocks[1].mlp = Doubled(model.blocks[1].mlp)
    model.setup()
    fast, plain = (
        causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, window=1, engine=engine)
        for engine in ("auto", "plain")
    )
    assert fast.engine == "blocks (the model's own blocks)"
    close(fast.restored, plain.restored, 1e-10)
    assert not torch.allclose(fast.restored, before.restored, rtol=1e-3)


def mixing(module, how):
    """Patch ``module`` so that ``how`` comes after it."""
    inner = module.forward
    module.forward = lambda *args, **kwargs: how(inner(*args, **kwargs))


def mlp_of(model):
    mlp = model.blocks[1].mlp
    return mlp.original_component if host.interface(model) == tiny_models.TRANSFORMER_BRIDGE else mlp


PATCHES = {
    "a causal sum over positions": lambda model: mixing(mlp_of(model), lambda out: out + out.cumsum(1)),
    "a mean over positions": lambda model: mixing(mlp_of(model), lambda out: out + out.mean(1, keepdim=True)),
    "a bound for large outputs": lambda model: mixing(mlp_of(model), lambda out: out.clamp(-0.2, 0.2)),
    "attention to what follows": lambda model: setattr(model.cfg, "attention_dir", "bidirectional"),
}


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2",)), ids=str)
def test_a_patched_model_is_traced_as_it_is(case, patch, prepend_bos):
    """Where a block does something of its own, the fast engine does the same, or leaves it to plain runs."""
    model = tiny_models.build(case)
    prompt = PROMPT if prepend_bos else PROMPT.removeprefix("My friend saw the ")
    before = causal_trace(model, prompt, SUBJECT, noise_std=STD, n_samples=3, window=1, prepend_bos=prepend_bos)
    assert (before.subject_span[0] > 0) is prepend_bos
    PATCHES[patch](model)
    found, plain = (
        causal_trace(
            model, prompt, SUBJECT, noise_std=STD, n_samples=3, window=1, prepend_bos=prepend_bos, engine=engine
        )
        for engine in ("auto", "plain")
    )
    assert "packed" not in found.engine
    close(found.restored, plain.restored, 1e-5)
    bridge = case.interface == tiny_models.TRANSFORMER_BRIDGE
    if not (bridge and patch == "attention to what follows"):
        assert not torch.allclose(plain.restored, before.restored, rtol=1e-3)


def looking_ahead(module):
    """Patch an MLP so that what follows a position changes it: nothing that the configuration says."""
    inner = module.forward
    module.forward = lambda act: inner(act) + 0.3 * act.flip(1).cumsum(1).flip(1)


@pytest.mark.parametrize("answer", [None, "Constantinople Rome Paris"])
@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2",)), ids=str)
@pytest.mark.filterwarnings("ignore:.*does not predict")
def test_a_model_that_looks_ahead_is_traced_plainly_however_improbable_the_answer(case, answer):
    model = tiny_models.build(case)
    looking_ahead(mlp_of(model))
    given = {"answer": answer, "measure": "log_prob", "noise_std": STD, "n_samples": 2, "prepend_bos": False}
    fast, plain = (
        causal_trace(model, "Space Needle is in the city of", SUBJECT, kinds=("resid_post",), engine=engine, **given)
        for engine in ("auto", "plain")
    )
    assert fast.engine.startswith("plain hooks (its blocks, called ")
    assert torch.equal(fast.restored, plain.restored)


@pytest.mark.parametrize("answer", [None, "Constantinople Rome Paris"])
@pytest.mark.filterwarnings("ignore:.*does not predict")
def test_the_spot_check_sees_what_the_clean_prompt_does_not_show(monkeypatch, answer):
    """A block that does something else with several rows than with one."""
    model = tiny_models.build("gpt2")
    mixing(mlp_of(model), lambda out: out + 0.3 * out.mean(0, keepdim=True) * (len(out) > 1))
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, answer=answer)
    assert "in a corrupted run" in trace.engine


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
@pytest.mark.parametrize("shift", [0.0, -30.0])
def test_half_precision_on_deep_models_needs_no_plain_runs(case, shift):
    model = tiny_models.build(case, dtype=torch.bfloat16, n_layers=12)
    unembed = model.unembed
    bias = getattr(unembed, "b_U", None)
    if isinstance(bias, torch.nn.Parameter):
        bias.data += shift
    trace = causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3)
    assert trace.engine.startswith("blocks")


def test_half_precision_is_allowed_the_rounding_of_its_logits():
    half = (torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(0)) - 30).bfloat16()
    neighbour = half.clone()
    neighbour.view(torch.int16)[0, 0, half.argmax()] += 1  # the next number in bfloat16
    off = (half.float().log_softmax(-1) - neighbour.float().log_softmax(-1)).abs().max()
    assert 0.05 < off <= tolerance(torch.bfloat16, half)
    assert (tolerance(torch.float32, half), tolerance(torch.float64, half)) == (2e-4, 1e-5)


@needs_hooked
def test_an_activation_function_of_your_own_is_called_as_it_is():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    own = model.blocks[1].mlp.act_fn

    def gelu_new(pre):
        return own(pre).clamp(max=0.1)

    model.blocks[1].mlp.act_fn = gelu_new
    fast, plain = (
        causal_trace(model, PROMPT, SUBJECT, noise_std=STD, n_samples=3, engine=engine) for engine in ("auto", "plain")
    )
    assert fast.engine == "blocks (the model's own blocks)"
    close(fast.restored, plain.restored, 1e-10)


@pytest.mark.parametrize("case", tiny_models.available_cases(("attn_only",)), ids=str)
def test_a_model_without_mlps_has_no_mlp_outputs(case):
    model = tiny_models.build(case)
    trace = causal_trace(model, PROMPT, SUBJECT, kinds=("resid_post", "attn_out"), noise_std=STD, n_samples=2)
    bridge = case.interface == tiny_models.TRANSFORMER_BRIDGE
    assert ("does not use the cache" if bridge else "blocks (the model's own blocks)") in trace.engine
    wanted = expected(model, "resid_post", [0], trace.subject_last, samples=2).mean()
    assert float(trace.restored_prob[0, 0, trace.subject_last]) == pytest.approx(float(wanted), rel=1e-4)
    with pytest.raises(ValueError, match=r"has no mlp_out.*pass kinds=\('resid_post', 'attn_out'\)"):
        causal_trace(model, PROMPT, SUBJECT)


# --- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": "Big Ben"}, "does not occur in"),
        ({"subject": PROMPT}, "is the whole prompt; expected a relation after it"),
        ({"n_samples": 0}, "n_samples is 0; expected an integer, 1 or more"),
        ({"noise": -1.0}, "noise is -1.0; expected a multiple of"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"noise_std": -0.1}, "noise_std is -0.1; expected a number, 0 or more"),
        ({"window": 0}, "window is 0; expected an integer, 1 or more"),
        ({"subject": " Space Needle"}, "begins or ends with white space"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"kinds": ()}, "expected some of resid_post"),
        ({"layers": [3]}, r"layers \[3\]; expected different whole numbers from 0 to 2"),
        ({"layers": []}, "expected different whole numbers"),
        ({"layers": [1, 1]}, "expected different whole numbers"),
        ({"positions": [99]}, r"positions \[99\]; expected one of all, .* different whole numbers from 0 to"),
        ({"positions": []}, "different whole numbers"),
        ({"measure": "logit_diff"}, "needs a second answer"),
        ({"other_answer": "Rome"}, "needs a second answer"),
        ({"measure": "logit_diff", "answer": "Rome", "other_answer": "Rome"}, "are the same token"),
        ({"measure": "logit_diff", "other_answer": "Constantinople"}, "between two single tokens"),
        ({"severed": "mlp_out"}, r"kinds=\(\"resid_post\",\)"),
        ({"counterfactual": "My friend"}, "expected as many; choose a subject with as many tokens"),
        ({"counterfactual": PROMPT}, "is the prompt itself"),
        ({"noise": Noise.gaussian(), "noise_std": 0.1}, "both a Noise and noise_std"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=str,
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        causal_trace(shared("gpt2"), PROMPT, **({"subject": SUBJECT} | options))


def test_too_long_a_prompt_is_refused():
    model = shared("gpt2")
    with pytest.raises(ValueError, match="has a context of 128; shorten"):
        causal_trace(model, PROMPT + " and of" * 130, SUBJECT)


def test_active_dropout_is_refused():
    model = tiny_models.build("gpt2")
    model.blocks[1].drop = torch.nn.Dropout(0.1)
    model.train()
    with pytest.raises(ValueError, match=r"causal_trace needs a deterministic model; found active dropout"):
        causal_trace(model, PROMPT, SUBJECT)


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_activations_that_are_not_finite_are_refused(engine):
    model = tiny_models.build("gpt2")
    host.write_w_out(model, 1, torch.full((80, 32), float("nan")))
    with pytest.raises(ValueError, match="not finite; expected finite activations; load the model in float32"):
        causal_trace(model, PROMPT, SUBJECT, engine=engine)


def test_an_exception_leaves_the_model_as_it_was():
    model = tiny_models.build("gpt2")
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}

    def raises(act, hook):
        raise KeyboardInterrupt

    model.hook_dict["blocks.2.hook_resid_post"].add_hook(raises)
    with pytest.raises(KeyboardInterrupt):
        causal_trace(model, PROMPT, SUBJECT)
    model.reset_hooks()
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert not any(module._forward_pre_hooks for module in model.blocks)


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


def test_embedding_std_is_over_all_entries_of_all_subjects():
    model = shared("gpt2")
    subjects = ["Space Needle", "Eiffel Tower", "Rome"]
    rows = [model.to_tokens(subject, prepend_bos=False) for subject in subjects]
    embedded = [model.run_with_cache(row)[1]["hook_embed"][0] for row in rows]
    wanted = torch.cat(embedded).double().std()
    assert embedding_std(model, subjects) == pytest.approx(float(wanted), rel=1e-6)
    assert np.isfinite(causal_trace(model, PROMPT, SUBJECT, noise_std=3 * embedding_std(model, subjects)).corrupted)
