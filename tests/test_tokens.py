"""Strings to ids: the subject's span, the target's tokens and padded batches, whatever the tokenizer."""

import functools
import itertools

import pytest
import tiny_tokenizers
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import N_CTX, Case, available_cases, build, interfaces
from tiny_tokenizers import byte_level, sentencepiece_like, slow
from transformers import PreTrainedTokenizerFast

from tl_edit import forward, host, tokens
from tl_edit.request import EditRequest

TOKENIZERS = {
    "byte_level": byte_level,
    "byte_level-left": functools.partial(byte_level, padding_side="left"),
    "byte_level-no-bos": functools.partial(byte_level, bos=None),
    "byte_level-adds-bos": functools.partial(byte_level, bos="</s>", eos="</s>", pad="<pad>", add_bos=True),
    "sentencepiece": sentencepiece_like,
    "sentencepiece-left": functools.partial(sentencepiece_like, padding_side="left"),
    "sentencepiece-always": functools.partial(sentencepiece_like, prepend_scheme="always"),
    "sentencepiece-never": functools.partial(sentencepiece_like, prepend_scheme="never"),
    "slow": slow,
    "slow-left": functools.partial(slow, padding_side="left"),
}
INTERFACES = list(interfaces())
EIFFEL = EditRequest("{} is in the city of", "The Eiffel Tower", "Rome")


@functools.cache
def model_with(tokenizer, interface=INTERFACES[0]):
    return build("gpt2", interface, tokenizer=TOKENIZERS[tokenizer]())


each_interface = pytest.mark.parametrize("interface", INTERFACES)
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS)
each_bos = pytest.mark.parametrize("bos", [True, False], ids=["bos", "no-bos"])


def decode(model, ids):
    return model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def covered(model, ids):
    """The characters (first, one past the last) that each token stands for, from decoding longer and longer."""
    lengths = [0]
    for end in range(1, len(ids) + 1):
        lengths.append(max(lengths[-1], len(decode(model, ids[:end]).rstrip("\ufffd"))))
    # An unfinished character belongs to all of its tokens.
    return [
        (length, next((later for later in lengths[i + 1 :] if later > length), lengths[-1]))
        for i, length in enumerate(lengths[:-1])
    ]


def assert_span_is_right(model, prompt, start, end, bos):
    ids = prompt.tokens.tolist()[int(bos) :]
    assert decode(model, ids) == prompt.text
    inside = [i for i, (a, b) in enumerate(covered(model, ids), int(bos)) if a < end and b > start]
    assert prompt.subject_span == (inside[0], inside[-1] + 1)
    assert prompt.subject_last == inside[-1]
    assert prompt.text[start:end] in decode(model, prompt.tokens.tolist()[slice(*prompt.subject_span)])


# --- subjects ------------------------------------------------------------------------------------------

REQUESTS = {
    "first": ("{} is in the city of", "The Eiffel Tower"),
    "middle": ("The mother tongue of {} is", "Danielle Darrieux"),
    "end": ("The sport of {}", "LeBron James"),
    "alone": ("{}", "The Space Needle"),
    "one-letter": ("The letter {} is in", "a"),
    "twice": ("Paris is not {} and Paris is the capital of", "Paris"),
    "in-another-word": ("Romeo and {} are in", "Rome"),
    "part-of-a-word": ("pre{}ing is", "fix"),
    "accent": ("The café {} is in", "Zoé Café"),
    "combining-accent": ("The name {} is", "Zoe\u0301"),
    "chinese": ("The capital {} (China) is", "北京"),
    "chinese-beside-chinese": ("中国的首都是{}市", "北京"),
    "emoji": ("🗼 and {} stand in", "🗼🇫🇷"),
    "emoji-last": ("What is 👩‍🚀{}", "👨‍👩‍👧"),
    "apostrophe": ("{}'s mother tongue is", "Danielle Darrieux"),
    "curly-apostrophe": ("{}’s mother tongue is", "Angela Merkel"),
    "own-apostrophe": ("The men of {} are", "O'Neill's"),
    "punctuation": ('He said "{}", then', "St. John, Jr."),
    "braces": ("In {0} the { of {} is }", "a{b}c"),
    "placeholder-in-subject": ("The code {} means", "a{}c"),
    "digits": ("In the year {}, she", "1234"),
    "new-line": ("Question: where is {}?\nAnswer:", "Beijing"),
    "two-spaces": ("The city of  {}  is", "New  York"),
}
PREFIXES = ["{}", "{}", "It was. {}", "The Eiffel Tower, 北京, é. {}", "“{}", "{} Yes", "{1} and } {}{"]


@each_tokenizer
@pytest.mark.parametrize(("relation", "subject"), REQUESTS.values(), ids=REQUESTS)
def test_the_span_covers_the_subject_and_nothing_else(relation, subject, tokenizer):
    model = model_with(tokenizer)
    request = EditRequest(relation, subject, "new")
    for prefix, bos in zip(PREFIXES, itertools.cycle([True, False]), strict=False):
        prompt = tokens.tokenize_request(model, request, prefix=prefix, prepend_bos=bos)
        assert prompt.text == prefix.replace("{}", request.prompt, 1)
        start = prefix.index("{}") + relation.index("{}")
        assert_span_is_right(model, prompt, start, start + len(subject), bos)


PIECES = [
    "a",
    "The",
    "Eiffel",
    " ",
    "  ",
    "é",
    "e\u0301",
    "北京",
    "🗼",
    "👨\u200d👩",
    "'s",
    "’s",
    ".",
    "7",
    "\n",
    "{",
    "}",
    "\t",
    "_",
]
texts = st.lists(st.sampled_from(PIECES), max_size=4).map("".join).filter(lambda text: "{}" not in text)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(before=texts, after=texts, subject=texts.map(str.strip).filter(bool))
def test_the_span_is_right_in_any_text(before, after, subject):
    # A SentencePiece decoder drops the space that a text begins with.
    relation = f"{before.lstrip()}{{}}{after.rstrip(' ')}"
    if relation.count("{}") != 1 or "{{}}" in relation:
        return
    request = EditRequest(relation, subject, "new")
    start = relation.index("{}")
    for name in ("byte_level", "sentencepiece", "slow"):
        prompt = tokens.tokenize_request(model_with(name), request, prepend_bos=False)
        assert_span_is_right(model_with(name), prompt, start, start + len(subject), False)


@each_interface
@each_tokenizer
def test_a_bos_moves_everything_by_one(tokenizer, interface):
    model = model_with(tokenizer, interface)
    without, with_bos = (tokens.tokenize_request(model, EIFFEL, prepend_bos=bos) for bos in (False, True))
    assert with_bos.tokens.tolist() == [model.tokenizer.bos_token_id, *without.tokens.tolist()]
    assert with_bos.subject_span == tuple(position + 1 for position in without.subject_span)
    assert with_bos.subject_last == without.subject_last + 1
    assert len(with_bos.str_tokens) == len(with_bos.tokens)


@each_bos
@each_tokenizer
def test_both_interfaces_give_the_same_prompt(tokenizer, bos):
    first, *others = (
        tokens.tokenize_request(model_with(tokenizer, name), EIFFEL, prefix="It was. {}", prepend_bos=bos)
        for name in INTERFACES
    )
    for other in others:
        assert torch.equal(other.tokens, first.tokens)
        assert (other.subject_span, other.str_tokens) == (first.subject_span, first.str_tokens)


@each_tokenizer
def test_text_before_the_subject_does_not_change_its_tokens(tokenizer):
    model = model_with(tokenizer)
    request = EditRequest("The mother tongue of {} is", "Danielle Darrieux", "French")

    def subject_ids(prefix):
        prompt = tokens.tokenize_request(model, request, prefix=prefix, prepend_bos=True)
        return prompt.tokens[slice(*prompt.subject_span)].tolist()

    assert subject_ids("{}") == subject_ids("It was. {}") == subject_ids("Darrieux is not Danielle Darrieux. {}")


@pytest.mark.parametrize("prefix", ["It was.", "{} and {}", "{{}}{}"])
def test_a_prefix_without_exactly_one_placeholder_is_refused(prefix):
    with pytest.raises(ValueError, match=r"^prefix .* placeholders; expected exactly one"):
        tokens.tokenize_request(model_with("byte_level"), EIFFEL, prefix=prefix)


@each_tokenizer
def test_tokenize_prompt_takes_the_first_occurrence(tokenizer):
    model = model_with(tokenizer)
    text = "In Paris, the mayor of Paris is"
    assert_span_is_right(model, tokens.tokenize_prompt(model, text, "Paris", prepend_bos=True), 3, 8, True)
    assert_span_is_right(model, tokens.tokenize_prompt(model, text, "Paris is", prepend_bos=False), 23, 31, False)


@pytest.mark.parametrize("subject", ["London", "paris", "", "Paris  is"])
def test_a_subject_that_does_not_occur_is_refused(subject):
    with pytest.raises(
        ValueError, match=r"locating the subject: '.*' does not occur in 'Paris is in'; expected the exact"
    ):
        tokens.tokenize_prompt(model_with("byte_level"), "Paris is in", subject)


def fast_tokenizers():
    return [name for name, make in TOKENIZERS.items() if make().is_fast]


@pytest.mark.parametrize("tokenizer", fast_tokenizers())
def test_the_way_without_offsets_agrees_with_the_one_that_has_them(tokenizer):
    model = model_with(tokenizer)
    for relation, subject in REQUESTS.values():
        text, start = relation.replace("{}", subject, 1), relation.index("{}")
        ids = tokens.encode(model, text, prepend_bos=True).tolist()
        by_offsets = tokens._offsets(model.tokenizer, text, ids)
        by_decoding = tokens._offsets_by_decoding(model.tokenizer, text, ids)

        overlap = [
            [i for i, (a, b) in enumerate(spans) if a < start + len(subject) and b > start]
            for spans in (by_offsets, by_decoding)
        ]
        assert overlap[0] == overlap[1] != []


@each_bos
def test_the_way_without_offsets_is_taken_where_the_tokenizer_disagrees_with_the_model(bos, monkeypatch):
    model = build("gpt2", tokenizer=byte_level())
    expected = tokens.tokenize_request(model, EIFFEL, prepend_bos=bos)
    monkeypatch.setattr(tokens, "_offsets", lambda tokenizer, text, ids: None)
    assert tokens.tokenize_request(model, EIFFEL, prepend_bos=bos).subject_span == expected.subject_span


def test_a_fast_tokenizer_that_refuses_offsets_is_decoded(monkeypatch):
    model = build("gpt2", tokenizer=byte_level())
    expected = tokens.tokenize_request(model, EIFFEL)
    call = type(model.tokenizer).__call__

    def without_offsets(self, *args, **options):
        if options.get("return_offsets_mapping"):
            raise NotImplementedError("return_offsets_mapping is not available")
        return call(self, *args, **options)

    monkeypatch.setattr(type(model.tokenizer), "__call__", without_offsets)
    assert tokens.tokenize_request(model, EIFFEL).subject_span == expected.subject_span


def test_a_tokenizer_that_does_not_give_the_text_back_is_refused():
    class Lowering:
        """Without offsets, and all it decodes is in lower case."""

        is_fast = False
        all_special_ids = ()

        def decode(self, ids, **_):
            return "the eiffel tower"[: 4 * len(ids)]

    with pytest.raises(
        ValueError, match=r"the tokenizer decodes 'The Eiffel Tower' to .*; expected the same text back; use a"
    ):
        tokens._token_span(Lowering(), "The Eiffel Tower", [1, 2, 3, 4], 4, 10)


def test_a_subject_that_no_token_covers_is_refused():
    class Dropping:
        """A tokenizer that throws the end of the text away."""

        is_fast = True

        def __call__(self, text, **_):
            return {"input_ids": [1], "offset_mapping": [(0, 3)]}

    with pytest.raises(
        ValueError, match=r"no token of 'The Eiffel' covers 'Eiffel'; expected a tokenizer that keeps the text"
    ):
        tokens._token_span(Dropping(), "The Eiffel", [1], 4, 10)


# --- encoding ------------------------------------------------------------------------------------------


@each_interface
@each_tokenizer
@pytest.mark.parametrize("text", ["The Eiffel Tower", " leading", "two  spaces", "é 北京 🗼", "Paris is in France.\n"])
def test_encoding_is_the_tokenizers_own_with_at_most_a_bos(text, tokenizer, interface):
    model = model_with(tokenizer, interface)
    plain = TOKENIZERS[tokenizer]()(text, add_special_tokens=False)["input_ids"]
    assert tokens.encode(model, text, prepend_bos=False).tolist() == plain
    assert tokens.encode(model, text, prepend_bos=True).tolist() == [model.tokenizer.bos_token_id, *plain]


@each_interface
@pytest.mark.parametrize("default", [True, False])
def test_the_models_default_decides_about_the_bos(interface, default):
    model = build("gpt2", interface)
    model.cfg.default_prepend_bos = default
    assert tokens.resolve_bos(model, None) is default
    assert (tokens.encode(model, "Paris")[0] == model.tokenizer.bos_token_id) == default
    assert tokens.resolve_bos(model, not default) is not default


@each_bos
@each_tokenizer
def test_a_text_without_tokens_is_refused(tokenizer, bos):
    with pytest.raises(ValueError, match="tokenising '': it has no tokens; expected words; pass a longer text"):
        tokens.encode(model_with(tokenizer), "", prepend_bos=bos)


@each_interface
def test_a_text_longer_than_the_context_is_refused_and_one_that_fits_is_not_cut(interface):
    model = model_with("byte_level", interface)
    assert len(tokens.encode(model, " Paris" * N_CTX, prepend_bos=False)) == N_CTX
    assert len(tokens.encode(model, " Paris" * (N_CTX - 1), prepend_bos=True)) == N_CTX
    for count, bos in ((N_CTX + 1, False), (N_CTX, True)):
        with pytest.raises(
            ValueError, match=rf"{N_CTX + 1} tokens; tiny-gpt2 has a context of {N_CTX}; shorten the text"
        ):
            tokens.encode(model, " Paris" * count, prepend_bos=bos)


@each_interface
def test_a_model_without_a_tokenizer_is_refused_with_the_way_to_give_one(interface, monkeypatch):
    model = build("gpt2", interface)
    model.tokenizer = None
    with pytest.raises(
        ValueError, match=r"tokenising for tiny-gpt2: the model has no tokenizer; .*pass tokenizer= when you"
    ):
        tokens.tokenize_request(model, EIFFEL)


@each_interface
def test_a_bos_that_the_tokenizer_lacks_is_refused_if_asked_for(interface):
    model = build("gpt2", interface, tokenizer=byte_level(bos=None))
    model.tokenizer.bos_token = None
    model.cfg.default_prepend_bos = True
    for asked in (True, None):
        with pytest.raises(
            ValueError, match=r"a BOS token is to be prepended but the tokenizer has none; pass prepend_bos=F"
        ):
            tokens.resolve_bos(model, asked)
    assert tokens.resolve_bos(model, False) is False
    assert decode(model, tokens.encode(model, "The Eiffel Tower", prepend_bos=False)) == "The Eiffel Tower"


def test_str_tokens_are_the_tokens_alone():
    model = model_with("byte_level")
    ids = tokens.encode(model, "The Eiffel Tower is in don 't", prepend_bos=False)
    pieces = tokens.str_tokens(model, ids)
    assert "".join(pieces) == "The Eiffel Tower is in don 't"
    assert len(pieces) == len(ids)


# --- targets -------------------------------------------------------------------------------------------


@each_interface
@each_bos
@each_tokenizer
def test_a_target_goes_on_where_the_prompt_ends(tokenizer, bos, interface):
    model = model_with(tokenizer, interface)
    for target in (*tiny_tokenizers.SINGLE_TOKENS, "New York City", "北京🗼", "O'Neill"):
        ids = tokens.target_tokens(model, EIFFEL.prompt, target, prepend_bos=bos)
        before = tokens.encode(model, EIFFEL.prompt, prepend_bos=bos).tolist()
        assert decode(model, [*before[int(bos) :], *ids.tolist()]) == f"{EIFFEL.prompt} {target.strip()}"
        assert (len(ids) == 1) == (target in tiny_tokenizers.SINGLE_TOKENS)


@pytest.mark.parametrize("target", ["Rome", "Zürich", "New York City"])
def test_for_byte_level_a_target_is_its_tokens_after_a_space(target):
    model = model_with("byte_level")
    expected = model.tokenizer(" " + target, add_special_tokens=False)["input_ids"]
    for given_target in (target, " " + target, f"  {target} "):
        assert tokens.target_tokens(model, EIFFEL.prompt, given_target, prepend_bos=False).tolist() == expected


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "sentencepiece-always", "sentencepiece-never"])
def test_for_sentencepiece_the_space_is_not_doubled(tokenizer):
    model = model_with(tokenizer)
    (token,) = tokens.target_tokens(model, EIFFEL.prompt, "Rome", prepend_bos=True).tolist()
    assert model.tokenizer.convert_ids_to_tokens(token) == "▁Rome"


@pytest.mark.parametrize("target", ["", " ", "\n"])
def test_an_empty_target_is_refused(target):
    with pytest.raises(
        ValueError, match=r"tokenising the target '.*': it has no tokens; expected a word; pass another"
    ):
        tokens.target_tokens(model_with("byte_level"), EIFFEL.prompt, target)


def across_words():
    """A tokenizer that knows "n " as one token, so that a word after a final n changes the prompt's tokens."""
    letters = ["<s>", *map(chr, range(32, 127)), "n "]
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, [("n", " ")], unk_token="<s>")
    )
    core.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", unk_token="<s>")


@each_interface
def test_a_target_that_merges_with_the_prompt_is_refused(interface):
    model = build("gpt2", interface, tokenizer=across_words())
    with pytest.raises(
        ValueError, match=r"the target 'Rome': after 'It is in' it merges with the prompt's last token; expe"
    ):
        tokens.target_tokens(model, "It is in", "Rome", prepend_bos=False)
    assert len(tokens.target_tokens(model, "It is at", "Rome", prepend_bos=False)) == 5


def test_a_prompt_that_is_too_long_with_its_target_is_refused():
    model = model_with("byte_level")
    assert len(tokens.target_tokens(model, " Paris" * (N_CTX - 1), "Rome", prepend_bos=False)) == 1
    with pytest.raises(ValueError, match=f"context of {N_CTX}; shorten"):
        tokens.target_tokens(model, " Paris" * N_CTX, "Rome", prepend_bos=False)


# --- padding -------------------------------------------------------------------------------------------

LINES = ["Paris", "The Eiffel Tower is in the city of", "It is", "The mother tongue of Danielle Darrieux is"]


def test_rows_are_padded_on_the_right_with_a_mask_that_tells_which_are_real():
    for name in ("byte_level-left", "byte_level-adds-bos", "sentencepiece"):
        model = model_with(name)
        rows = [tokens.encode(model, line) for line in LINES]
        batch = tokens.pad(model, rows)
        longest = max(map(len, rows))
        assert batch.lengths == tuple(map(len, rows))
        assert batch.tokens.shape == batch.attention_mask.shape == (4, longest)
        for padded, mask, row in zip(batch.tokens, batch.attention_mask, rows, strict=True):
            padding = longest - len(row)
            assert padded.tolist() == [*row.tolist(), *[model.tokenizer.pad_token_id] * padding]
            assert mask.tolist() == [1] * len(row) + [0] * padding


def test_a_model_without_a_tokenizer_can_be_given_rows_of_ids():
    model = build("gpt2")
    model.tokenizer = None
    batch = tokens.pad(model, [torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    alone = forward.last_log_probs(model, tokens.pad(model, [torch.tensor([8])]))
    torch.testing.assert_close(forward.last_log_probs(model, batch)[1:], alone, atol=1e-5, rtol=0)


def padding_cases():
    for case in available_cases(["gpt2", "llama", "gemma2", "opt"]):
        if not case.processed:
            for side in ("right", "left"):
                yield pytest.param(case, side, id=f"{case}-{side}")


@pytest.mark.parametrize(("case", "side"), padding_cases())
def test_a_row_gives_the_same_padded_and_alone(case, side):
    make = {"llama": sentencepiece_like, "gemma2": sentencepiece_like}.get(case.family, byte_level)
    model = build(case, tokenizer=make(padding_side=side))
    rows = [tokens.encode(model, line) for line in LINES]
    names = [host.EMBED, host.key_name(1), host.value_name(model, 2), host.resid_post_name(2)]
    batch = tokens.pad(model, rows)
    read, last = forward.activations(model, batch, names), forward.last_log_probs(model, batch)
    logits = forward.logits(model, batch)
    for i, row in enumerate(rows):
        single = tokens.pad(model, [row])
        assert single.attention_mask.all()
        alone = forward.activations(model, single, names)
        for name in names:
            torch.testing.assert_close(read[name][i, : len(row)], alone[name][0], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(last[i], forward.last_log_probs(model, single)[0], atol=2e-5, rtol=0)
        torch.testing.assert_close(logits[i, : len(row)], forward.logits(model, single)[0], atol=5e-5, rtol=0)
        torch.testing.assert_close(forward.logits(model, single)[0], model(row[None])[0], atol=5e-5, rtol=0)


@each_interface
def test_padding_does_not_look_at_what_the_pad_token_is(interface):
    model = model_with("byte_level", interface)
    rows = [tokens.encode(model, line, prepend_bos=True) for line in LINES]
    assert rows[0][0] == model.tokenizer.pad_token_id
    batch = tokens.pad(model, rows)
    other = tokens.TokenBatch(
        tokens=torch.where(batch.attention_mask.bool(), batch.tokens, 77),
        attention_mask=batch.attention_mask,
        lengths=batch.lengths,
    )
    expected = forward.last_log_probs(model, batch)
    torch.testing.assert_close(forward.last_log_probs(model, other), expected, atol=2e-5, rtol=0)


def test_the_tokenizers_of_the_models_are_left_as_they_were():
    for name in INTERFACES:
        model = build(Case("gpt2", name, False), tokenizer=byte_level(padding_side="left"))
        before = (model.tokenizer.padding_side, model.tokenizer.pad_token, model.tokenizer.bos_token)
        tokens.tokenize_request(model, EIFFEL, prepend_bos=False)
        forward.last_log_probs(model, tokens.pad(model, [tokens.encode(model, line) for line in LINES]))
        assert (model.tokenizer.padding_side, model.tokenizer.pad_token, model.tokenizer.bos_token) == before


def test_a_prompt_shows_its_tokens_and_which_are_the_subject():
    prompt = tokens.Prompt(
        text="in <b> it", tokens=torch.tensor([5, 6, 7]), str_tokens=("in", " <b>", " it"), subject_span=(1, 2)
    )
    page = prompt._repr_html_()
    assert page.count("subject") == 1
    assert "␣&lt;b&gt;" in page
    assert "<b>" not in page
