"""Prefixes that the model generates itself: seeded, reproducible, and templates."""

import functools

import pytest
import torch
from tiny_models import N_CTX, TRANSFORMER_BRIDGE, Case, available_cases, build, default_tokenizer, interfaces

from tl_edit import prefixes, tokens
from tl_edit.prefixes import generate_prefixes
from tl_edit.request import EditRequest, check_template

shared = functools.cache(build)
each_interface = pytest.mark.parametrize("interface", interfaces())
each_case = pytest.mark.parametrize(
    "case", [case for case in available_cases(["gpt2", "llama", "opt"]) if not case.processed], ids=str
)


def start_of(model):
    return int(model.tokenizer.bos_token_id)


def sample(model, rows=4, length=6, top_k=5, seed=0):
    starts = [torch.tensor([start_of(model)])] * rows
    return prefixes._sample(model, starts, length, top_k, torch.Generator().manual_seed(seed))


@each_case
def test_prefixes_are_templates_that_requests_accept(case):
    model = shared(case)
    made = generate_prefixes(model, lengths=(3, 5), n_per_length=4)
    assert len(made) == 8
    for prefix in made:
        check_template(prefix, "prefix")
        assert prefix.endswith(". {}")
        assert prefix.count("{") == prefix.count("}") == 1
        request = EditRequest("{} is in", "The Eiffel Tower", "Rome")
        prompt = tokens.tokenize_request(model, request, prefix=prefix)
        assert prompt.text == prefix[:-2] + request.prompt


@each_case
def test_the_same_seed_gives_the_same_prefixes_and_another_seed_others(case):
    model = shared(case)
    first = generate_prefixes(model, lengths=(4, 6), n_per_length=3, seed=7)
    torch.rand(3)
    assert generate_prefixes(model, lengths=(4, 6), n_per_length=3, seed=7) == first
    assert generate_prefixes(model, lengths=(4, 6), n_per_length=3, seed=8) != first


@each_interface
def test_the_published_rule_is_the_default(interface):
    model = shared(Case("gpt2", interface, False))
    made = generate_prefixes(model)
    assert made == generate_prefixes(model, lengths=(5, 10), n_per_length=10, top_k=5, seed=0)
    assert len(made) == 20
    assert len(set(made)) > 15


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_interface_generates_the_same(family):
    made = [generate_prefixes(shared(case), lengths=(5,), n_per_length=5) for case in available_cases([family])]
    assert all(other == made[0] for other in made)


@pytest.mark.parametrize("length", [2, 3, 10])
@each_interface
def test_lengths_count_tokens_with_the_bos(interface, length):
    model = shared(Case("gpt2", interface, False))
    sampled = sample(model, rows=3, length=length)
    assert sampled.shape == (3, length)
    assert (sampled[:, 0] == start_of(model)).all()
    assert sampled.dtype == torch.long


@each_interface
def test_the_decoded_text_is_that_of_the_sampled_tokens_without_the_bos(interface):
    model = shared(Case("gpt2", interface, False))
    decoded = [model.tokenizer.decode(row[1:], skip_special_tokens=True) for row in sample(model).tolist()]
    made = generate_prefixes(model, lengths=(6,), n_per_length=4)
    assert list(made) == [prefixes._as_template(text) for text in decoded]


@pytest.mark.parametrize("top_k", [1, 3, 5])
@each_case
def test_each_token_is_among_the_likeliest(case, top_k):
    model = shared(case)
    sampled = sample(model, rows=6, length=7, top_k=top_k)
    with torch.no_grad():
        logits = model(sampled)
    for end in range(1, sampled.shape[1]):
        likeliest = logits[:, end - 1].topk(top_k).indices
        assert (likeliest == sampled[:, end : end + 1]).any(-1).all()


@each_interface
def test_with_one_candidate_generation_is_greedy_and_all_rows_are_equal(interface):
    model = shared(Case("gpt2", interface, False))
    sampled = sample(model, top_k=1)
    assert (sampled == sampled[0]).all()
    assert torch.equal(sampled, sample(model, top_k=1, seed=9))


@each_interface
def test_tokens_are_drawn_with_their_renormalised_probabilities(interface):
    model = shared(Case("gpt2", interface, False))
    drawn = sample(model, rows=4000, length=2, top_k=3)[:, 1]
    with torch.no_grad():
        top = model(torch.tensor([[start_of(model)]]))[0, -1].softmax(-1).topk(3)
    expected = top.values / top.values.sum()
    found = torch.stack([(drawn == token).float().mean() for token in top.indices])
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@each_interface
def test_a_candidate_count_beyond_the_vocabulary_takes_all_of_it(interface):
    model = shared(Case("gpt2", interface, False))
    assert sample(model, top_k=10**6).shape == (4, 6)


@each_case
def test_the_model_and_the_global_random_state_are_left_as_they_were(case):
    model = shared(case)
    ids = tokens.encode(model, "Paris is in")[None]
    state = torch.get_rng_state()
    with torch.no_grad():
        before = model(ids)
    flags = [(parameter.requires_grad, parameter._version) for parameter in model.parameters()]
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    generate_prefixes(model, lengths=(4,), n_per_length=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(parameter.requires_grad, parameter._version) for parameter in model.parameters()] == flags
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert torch.equal(model(ids), before)


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("plain words", "plain words. {}"),
        (" a {b} c", " a  b  c. {}"),
        ("{}", "  . {}"),
        ("{{}}{", "     . {}"),
        ("two\n\nparagraphs", "two paragraphs. {}"),
        ("ﬁne café", "fine cafe\u0301. {}"),
        ("", ". {}"),
        ("\uff5bwide\uff5d", " wide . {}"),
    ],
)
def test_a_template_has_no_braces_but_its_placeholder(text, template):
    assert prefixes._as_template(text) == template
    check_template(template, "prefix")


def test_braces_that_the_model_generates_do_no_harm(monkeypatch):
    model = shared(Case("gpt2", next(iter(interfaces())), False))
    braces = model.tokenizer.convert_tokens_to_ids(["{", "}"])

    def only_braces(model, batch):
        log_probs = torch.full((len(batch.lengths), model.cfg.d_vocab), -100.0)
        log_probs[:, braces] = -0.7
        return log_probs

    monkeypatch.setattr(prefixes.forward, "last_log_probs", only_braces)
    for prefix in generate_prefixes(model, lengths=(5,), n_per_length=5):
        assert set(prefix) == set(" .{}")
        check_template(prefix, "prefix")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_interface
def test_other_dtypes_work(interface, dtype):
    made = generate_prefixes(build("gpt2", interface, dtype=dtype), lengths=(4,), n_per_length=3)
    assert len(made) == 3
    if dtype == torch.float64:
        assert made == generate_prefixes(shared(Case("gpt2", interface, False)), lengths=(4,), n_per_length=3)


@pytest.mark.parametrize("side", ["left", "right"])
@each_interface
def test_the_padding_side_is_irrelevant(interface, side):
    tokenizer = default_tokenizer("gpt2")
    tokenizer.padding_side = side
    made = generate_prefixes(build("gpt2", interface, tokenizer=tokenizer), lengths=(4,), n_per_length=3)
    assert made == generate_prefixes(shared(Case("gpt2", interface, False)), lengths=(4,), n_per_length=3)


@pytest.mark.parametrize(
    "settings",
    [{"n_per_length": 0}, {"top_k": 0}, {"lengths": (1,)}, {"lengths": (5, 0)}, {"lengths": ()}, {"n_per_length": -3}],
)
@each_interface
def test_numbers_that_are_too_small_are_refused(interface, settings):
    with pytest.raises(
        ValueError, match=r"generate_prefixes: n_per_length .*; expected at least 1, 1, and .*the published"
    ):
        generate_prefixes(shared(Case("gpt2", interface, False)), **settings)


@each_interface
def test_lengths_beyond_the_context_are_refused(interface):
    model = shared(Case("gpt2", interface, False))
    with pytest.raises(ValueError, match=rf"generate_prefixes: .*{N_CTX + 1}.*context of {N_CTX}"):
        generate_prefixes(model, lengths=(5, N_CTX + 1), n_per_length=1)


@each_interface
def test_a_model_without_a_tokenizer_is_refused(interface):
    model = build("gpt2", interface)
    model.tokenizer = None
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        generate_prefixes(model)


@each_interface
def test_generation_starts_from_the_eos_where_there_is_no_bos_and_is_refused_without_either(interface):
    model = build("gpt2", interface)
    expected = generate_prefixes(model, lengths=(4,), n_per_length=2)
    model.tokenizer.bos_token = None
    assert generate_prefixes(model, lengths=(4,), n_per_length=2) == expected
    model.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"neither a BOS nor an EOS token to start from; .*pass prefixes= of your own"):
        generate_prefixes(model, lengths=(4,), n_per_length=2)


@pytest.mark.skipif(TRANSFORMER_BRIDGE not in interfaces(), reason="TransformerLens has no bridge")
def test_active_dropout_is_refused():
    with pytest.raises(ValueError, match=r"generate_prefixes needs a deterministic model"):
        generate_prefixes(build("gpt2", TRANSFORMER_BRIDGE).train())


class TestStarts:
    """MEMIT's rule: the model goes on from a few words, without a BOS."""

    @each_interface
    def test_texts_begin_with_the_words_in_turn_and_have_the_length(self, interface):
        model = shared("gpt2", interface)
        starts = ("The", "Because")
        made = generate_prefixes(model, lengths=(9,), n_per_length=5, starts=starts)
        assert [text.startswith(starts[i % 2]) for i, text in enumerate(made)] == [True] * 5
        for text in made:
            check_template(text, "prefix")
        sampled = prefixes._sample(model, prefixes._begun(model, starts, 9), 9, 5, torch.Generator().manual_seed(0))
        assert sampled.shape == (2, 9)
        assert start_of(model) not in sampled[:, 0]

    def test_each_row_is_drawn_from_what_the_model_says_after_it(self):
        """Starts of different lengths do not disturb each other."""
        model = shared("gpt2", TRANSFORMER_BRIDGE if TRANSFORMER_BRIDGE in interfaces() else "HookedTransformer")
        starts = prefixes._begun(model, ("The", "The Eiffel Tower is"), 9)
        together = prefixes._sample(model, starts, 9, 1, torch.Generator())
        for row, start in zip(together, starts, strict=True):
            assert torch.equal(row, prefixes._sample(model, [start], 9, 1, torch.Generator())[0])

    def test_neither_bos_nor_eos_is_needed(self):
        model = build("gpt2")
        model.tokenizer.bos_token = model.tokenizer.eos_token = None
        assert generate_prefixes(model, lengths=(4,), n_per_length=1, starts=["The"])[0].startswith("The")

    @pytest.mark.parametrize("starts", ["The", [], [""], [5], 5])
    def test_other_things_than_words_are_refused(self, starts):
        with pytest.raises(ValueError, match="starts is .*; expected words, or None for a lone BOS; MEMIT's are"):
            prefixes._begun(shared("gpt2"), starts, 5)

    def test_a_start_longer_than_the_text_is_refused(self):
        with pytest.raises(ValueError, match=r"start 'The Eiffel Tower' has \d tokens; expected at most 2, the length"):
            generate_prefixes(shared("gpt2"), lengths=(2, 9), starts=["The Eiffel Tower"])
