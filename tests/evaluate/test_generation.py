"""Generated texts: equal to a slow oracle, whatever runs beside them and however they are computed."""

import functools
import math

import pytest
import tiny_models
import torch
from some_edits import make_edit

from tl_edit.evaluate import Generation, generate_texts, sampling
from tl_edit.evaluate.generation import starts_of
from tl_edit.evaluate.sampling import Start, grow, sample, uniforms

PROMPTS = ("The Eiffel Tower is", "Rome", "The Louvre is in the city of Paris, and", "Rome")
N_TOKENS = 36
"""More than the sliding windows of the tiny models hold."""

each_case = pytest.mark.parametrize(
    "case", tiny_models.available_cases(("gpt2", "llama", "gemma2", "opt", "gpt_neo", "phi")), ids=str
)


@functools.cache
def shared(case):
    return tiny_models.build(case, dtype=torch.float64)


def gpt2(**kwargs):
    return tiny_models.build("gpt2", dtype=torch.float64, **kwargs)


def starts(model, prompts=PROMPTS, n_tokens=N_TOKENS, seed=0):
    return starts_of(model, prompts, n_tokens, seed, "test", prepend_bos=False)


def oracle(model, prompt, uniform, top_k=5):
    """One text, a whole pass for each token, drawn by adding up probabilities."""
    row = model.to_tokens(prompt, prepend_bos=False)[0].tolist()
    while len(row) < len(uniform):
        with torch.no_grad():
            probabilities = model(torch.tensor([row]))[0, -1].softmax(-1).tolist()
        likeliest = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:top_k]
        left = float(uniform[len(row)]) * math.fsum(probabilities[token] for token in likeliest)
        for token in likeliest:
            left -= probabilities[token]
            if left < 0:
                break
        row.append(token)
    return row


@each_case
def test_rows_equal_an_oracle_however_they_are_computed(case):
    model = shared(case)
    given = starts(model)
    expected = [oracle(model, prompt, start.uniform) for prompt, start in zip(PROMPTS, given, strict=True)]
    fast, how = sample(model, given, n_tokens=N_TOKENS, top_k=5, batch_size=3)
    assert how.startswith("blocks (")
    slow, why = sample(model, given, n_tokens=N_TOKENS, top_k=5, batch_size=3, engine="plain")
    assert why == "whole passes (asked for)"
    assert [row.tolist() for row in fast] == expected
    assert [row.tolist() for row in slow] == expected


def test_weights_may_be_packed_at_every_step(monkeypatch):
    model = gpt2()
    kept, how = sample(model, starts(model), n_tokens=N_TOKENS, top_k=5, batch_size=4)
    monkeypatch.setattr(sampling, "KEPT_BYTES", 0)
    anew, same = sample(model, starts(model), n_tokens=N_TOKENS, top_k=5, batch_size=4)
    assert torch.equal(torch.stack(kept), torch.stack(anew))
    assert how == same


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_a_text_depends_on_its_prompt_and_the_equal_ones_before_it_alone(engine):
    model = gpt2()
    make = functools.partial(generate_texts, model, n_tokens=20, engine=engine)
    texts = make(PROMPTS)
    assert len(set(texts)) == 4
    assert make(PROMPTS, batch_size=1) == texts
    assert make(PROMPTS[0]) == texts[:1]
    assert make(PROMPTS[::-1]) == (texts[1], texts[2], texts[3], texts[0])
    assert make(("Rome", "Rome")) == (texts[1], texts[3])


def test_seeds_make_texts_again_and_others():
    model = gpt2()
    first = generate_texts(model, PROMPTS, n_tokens=20, seed=1)
    torch.rand(3)
    assert generate_texts(model, PROMPTS, n_tokens=20, seed=1) == first
    assert not set(generate_texts(model, PROMPTS, n_tokens=20, seed=2)) & set(first)


def test_global_random_state_is_left_alone():
    state = torch.random.get_rng_state()
    generate_texts(gpt2(), PROMPTS, n_tokens=16)
    assert torch.equal(torch.random.get_rng_state(), state)


class Fixed:
    """Says the same after every row, and keeps what it was asked."""

    def __init__(self, probabilities):
        self.log_probs, self.asked = torch.tensor(probabilities).log(), []

    def __call__(self, rows):
        self.asked.append(rows.clone())
        return self.log_probs.expand(len(rows), -1)


def test_tokens_are_drawn_in_proportion_among_the_likeliest():
    # The three likeliest are 2, 0, 3 with shares .5, .3, .1 of .9.
    following = Fixed([0.3, 0.06, 0.5, 0.1, 0.04])
    uniform = torch.tensor([0.0, 0.0, 0.5, 0.6, 0.88, 0.9, 0.9999], dtype=torch.float64)
    grown = grow([Start(torch.tensor([4]), uniform)], following, 7, 3)
    assert grown.rows[0].tolist() == [4, 2, 2, 0, 0, 3, 3]
    assert grown.candidates[0, 0].tolist() == [2, 0, 3]
    assert grown.log_probs[0, 0].exp().tolist() == pytest.approx([0.5, 0.3, 0.1])
    greedy = grow([Start(torch.tensor([4]), uniform)], following, 7, 1)
    assert greedy.rows[0].tolist() == [4, 2, 2, 2, 2, 2, 2]
    every = grow([Start(torch.tensor([4]), uniform)], following, 7, 100)
    assert every.candidates[0, 0].tolist() == [2, 0, 3, 1, 4]


def test_frequencies_are_those_of_the_model():
    given = [Start(torch.tensor([1]), uniform) for uniform in uniforms(["a"] * 4000, 4, 0)]
    rows = grow(given, Fixed([0.5, 0.2, 0.3]), 4, 3).rows[:, 1:]
    share = rows.flatten().bincount() / rows.numel()
    assert share.tolist() == pytest.approx([0.5, 0.2, 0.3], abs=0.02)


def test_a_longer_prompt_keeps_its_tokens_while_others_grow():
    zeros = torch.zeros(5, dtype=torch.float64)
    following = Fixed([0.6, 0.4])
    grown = grow([Start(torch.tensor([1]), zeros), Start(torch.tensor([1, 1, 1]), zeros)], following, 5, 2)
    assert grown.rows.tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert [rows.tolist() for rows in following.asked[:2]] == [[[1], [1]], [[1, 0], [1, 1]]]


def test_texts_go_on_behind_an_end_which_is_left_out():
    model = tiny_models.build("gpt2")
    with torch.no_grad():
        model.unembed.b_U[model.tokenizer.eos_token_id] = 50.0
    assert generate_texts(model, ["The Eiffel Tower is"], n_tokens=16, top_k=1) == ("The Eiffel Tower is",)
    rows, _ = sample(model, starts(model, PROMPTS[:1], 16), n_tokens=16, top_k=1, batch_size=1)
    assert rows[0].tolist().count(model.tokenizer.eos_token_id) > 4


def test_texts_are_normalised_as_published():
    model = gpt2()
    prompt = "The ﬁrst day\n\nof ½"
    n_tokens = model.to_tokens(prompt, prepend_bos=True).shape[1] + 1
    assert generate_texts(model, prompt, n_tokens=n_tokens)[0].startswith("The first day of 1⁄2")


def test_a_bos_counts_and_is_not_in_the_text():
    model = gpt2()
    lengths = []
    for bos in (True, False):
        text = generate_texts(model, "Rome is", n_tokens=20, prepend_bos=bos, hooks=[("hook_embed", seen_by(lengths))])
        assert text[0].startswith("Rome is")
        assert "<|" not in text[0]
    # The last token is drawn behind 19, with the BOS and without it.
    assert max(lengths) == 19
    assert lengths.count(19) == 2


def seen_by(lengths):
    def hook(act, hook=None):
        lengths.append(act.shape[1])

    return hook


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
def test_hooks_act_in_every_pass_as_the_weights_would(case):
    model = shared(case)
    edit = make_edit(model)
    plain = generate_texts(model, PROMPTS, n_tokens=24)
    hooked = generate_texts(model, PROMPTS, n_tokens=24, hooks=edit.hooks(model))
    with edit.on(model):
        assert generate_texts(model, PROMPTS, n_tokens=24) == hooked
    assert hooked != plain
    assert generate_texts(model, PROMPTS, n_tokens=24) == plain
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_hooks_see_whole_prompts_of_one_length():
    model = gpt2()
    seen = []

    def look(act, hook=None):
        seen.append(tuple(act.shape[:2]))

    _, why = sample(model, starts(model), [("hook_embed", look)], n_tokens=N_TOKENS, top_k=5, batch_size=8)
    assert why == "whole passes (hooks are given)"
    lengths = [len(start.tokens) for start in starts(model)]
    assert lengths[1] == lengths[3]
    expected = [(lengths.count(length), stop) for length in sorted(set(lengths)) for stop in range(length, N_TOKENS)]
    assert seen == expected


def test_hooks_on_the_model_are_seen_and_stay():
    model = gpt2()
    plain, _ = sample(model, starts(model), n_tokens=N_TOKENS, top_k=5, batch_size=8)
    model.blocks[1].hook_mlp_out.add_hook(lambda act, hook: 2.0 * act)
    found, why = sample(model, starts(model), n_tokens=N_TOKENS, top_k=5, batch_size=8)
    assert why.startswith("whole passes (a hook is attached at blocks.1.")
    assert [row.tolist() for row in found] == [
        oracle(model, prompt, start.uniform) for prompt, start in zip(PROMPTS, starts(model), strict=True)
    ]
    assert not torch.equal(torch.stack(found), torch.stack(plain))
    assert len(model.blocks[1].hook_mlp_out.fwd_hooks) == 1


def test_what_is_off_is_found_and_computed_again(monkeypatch):
    """Blocks that pass the check before use, and say something else of single positions."""
    model = gpt2()
    expected, _ = sample(model, starts(model), n_tokens=N_TOKENS, top_k=5, batch_size=2)
    call = sampling.KeptPasses.__call__

    def off(self, rows):
        found = call(self, rows)
        return found.roll(1, dims=-1) if rows.shape[1] == N_TOKENS - 2 else found

    monkeypatch.setattr(sampling.KeptPasses, "__call__", off)
    found, why = sample(model, starts(model), n_tokens=N_TOKENS, top_k=5, batch_size=2)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert "off by" in why
    assert why.endswith("nats at the end of a text)")


def test_memory_that_runs_out_is_advice(monkeypatch):
    def full(self, rows):
        raise MemoryError("none left")

    monkeypatch.setattr(sampling.KeptPasses, "__call__", full)
    with pytest.raises(MemoryError, match=r"generate_texts: memory ran out with batch_size=6 .* pass batch_size=3"):
        generate_texts(gpt2(), PROMPTS, n_tokens=20, batch_size=6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_tokens": 129}, "has a context of 128; .* pass n_tokens=128 or less"),
        ({"n_tokens": 8}, "the prompt 'The Louvre is in .*' has .* tokens; expected less than n_tokens, 8"),
        ({"n_tokens": 1}, "n_tokens is 1; expected an integer of 2 or more"),
        ({"top_k": 0}, "top_k is 0; expected an integer of 1 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompts": []}, "expected one prompt or several"),
        ({"prompts": ["Rome", " "]}, "expected one prompt or several"),
        ({"hooks": [("blocks.0.hook_mlp_ou", print)]}, "'blocks.0.hook_mlp_ou' is not a hook point"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        generate_texts(**({"model": gpt2(), "prompts": PROMPTS} | arguments))


def test_settings_that_cannot_work_are_refused():
    for wrong in ({"n_tokens": 1}, {"top_k": 0}):
        with pytest.raises(ValueError, match=f"Generation: {next(iter(wrong))} is "):
            Generation(**wrong)
    published = Generation()
    assert (published.n_tokens, published.top_k, published.tfidf) == (100, 5, None)
