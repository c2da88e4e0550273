"""From strings to token ids: prompts, the subject's span, the target, padded batches.

The subject is found by tokenising the *whole* prompt and mapping its characters to tokens, never by
tokenising pieces and adding lengths (as the published programs do), so that it is right where pieces do not
tokenise alone as they do together: subjects in the middle, after a BOS, non-ASCII, SentencePiece.
``subject_last`` is the token that covers the subject's last character.

Batches are padded on the right and always run with their attention mask, whatever side the tokenizer
prefers: positions then mean the same in every row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import host, show
from tl_edit.host import Model
from tl_edit.request import EditRequest, check_template


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A tokenised prompt and where its subject stands."""

    text: str
    tokens: Int[Tensor, " pos"]
    str_tokens: tuple[str, ...]
    subject_span: tuple[int, int]
    """First subject position, and one past the last."""

    @property
    def subject_last(self) -> int:
        """The lookup position: index of the subject's last token."""
        return self.subject_span[1] - 1

    def _repr_html_(self) -> str:
        first, end = self.subject_span
        rows = [
            (str(i), show.spaced(token), "subject" if first <= i < end else "")
            for i, token in enumerate(self.str_tokens)
        ]
        return show.table(rows, columns=("position", "token", ""), heading=self.text)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Rows of different length, padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    lengths: tuple[int, ...]

    def take(self, rows: Sequence[int]) -> "TokenBatch":
        """These rows, in this order, some of them perhaps several times."""
        chosen = list(rows)
        lengths = tuple(self.lengths[row] for row in chosen)
        return TokenBatch(tokens=self.tokens[chosen], attention_mask=self.attention_mask[chosen], lengths=lengths)


def resolve_bos(model: Model, prepend_bos: bool | None) -> bool:
    """``prepend_bos`` itself, or the model's own default where it is None.

    Raises:
        ValueError: If the model has no tokenizer, or a BOS is asked for and its tokenizer has none.
    """
    if prepend_bos is not None and type(prepend_bos) is not bool:
        raise ValueError(
            f"tokenising for {host.model_name(model)}: prepend_bos is {prepend_bos!r}; expected True, False, or None "
            "for the model's own default."
        )
    if model.tokenizer is None:
        raise ValueError(
            f"tokenising for {host.model_name(model)}: the model has no tokenizer; expected one to turn strings "
            "into tokens; pass tokenizer= when you load it, or call model.set_tokenizer(...)."
        )
    wanted = bool(getattr(model.cfg, "default_prepend_bos", True)) if prepend_bos is None else prepend_bos
    if wanted and model.tokenizer.bos_token_id is None:
        raise ValueError(
            f"tokenising for {host.model_name(model)}: a BOS token is to be prepended but the tokenizer has none; "
            "pass prepend_bos=False."
        )
    return wanted


def encode(model: Model, text: str, *, prepend_bos: bool | None = None) -> Int[Tensor, " pos"]:
    """Token ids of ``text`` as the model itself would tokenise it, on the CPU, never truncated.

    Raises:
        ValueError: If the text has no tokens, or more than the context holds.
    """
    bos = resolve_bos(model, prepend_bos)
    tokens = model.to_tokens(text, prepend_bos=bos, truncate=False)[0].to("cpu", torch.long)
    context = int(model.cfg.n_ctx)
    if len(tokens) > context:
        raise ValueError(
            f"tokenising {text[:40]!r}...: {len(tokens)} tokens; {host.model_name(model)} has a context of {context}; "
            "shorten the text."
        )
    if len(tokens) == int(bos):
        raise ValueError(f"tokenising {text!r}: it has no tokens; expected words; pass a longer text.")
    return tokens


def str_tokens(model: Model, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Each token decoded alone, as pictures show it."""
    decode = model.tokenizer.decode
    return tuple(decode([token], clean_up_tokenization_spaces=False) for token in map(int, tokens))


def tokenize_request(
    model: Model, request: EditRequest, *, prefix: str = "{}", prepend_bos: bool | None = None
) -> Prompt:
    """The request's prompt, put into a ``prefix`` template such as ``"It was. {}"``.

    Raises:
        ValueError: If the template has not exactly one ``{}``, or the subject cannot be found in the tokens.
    """
    check_template(prefix, "prefix")
    start = prefix.index("{}") + request.relation.index("{}")
    text = prefix.replace("{}", request.prompt, 1)
    return _prompt(model, text, start, start + len(request.subject), prepend_bos)


def tokenize_prompt(model: Model, prompt: str, subject: str, *, prepend_bos: bool | None = None) -> Prompt:
    """``prompt`` with its first occurrence of ``subject`` located (the published tracing program's rule).

    Raises:
        ValueError: If the subject does not occur in the prompt, or one of them is no string.
    """
    for name, text in {"prompt": prompt, "subject": subject}.items():
        if not isinstance(cast(object, text), str):
            raise ValueError(
                f"locating the subject: the {name} is {text!r} of type {type(text).__name__}; expected a string; "
                "convert it, e.g. str(...)."
            )
    start = prompt.find(subject)
    if start < 0 or not subject:
        raise ValueError(
            f"locating the subject: {subject!r} does not occur in {prompt!r}; expected the exact spelling, "
            "capitals included; pass the subject as it stands in the prompt."
        )
    return _prompt(model, prompt, start, start + len(subject), prepend_bos)


def _prompt(model: Model, text: str, start: int, end: int, prepend_bos: bool | None) -> Prompt:
    tokens = encode(model, text, prepend_bos=prepend_bos)
    span = _token_span(model.tokenizer, text, list(map(int, tokens)), start, end)
    return Prompt(text=text, tokens=tokens, str_tokens=str_tokens(model, tokens), subject_span=span)


def _token_span(tokenizer: Any, text: str, ids: list[int], start: int, end: int) -> tuple[int, int]:
    """Tokens that overlap the characters ``start`` to ``end``: (first, one past the last)."""
    spans = _offsets(tokenizer, text, ids)
    if spans is None:
        spans = _offsets_by_decoding(tokenizer, text, ids)
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    if not inside:
        raise ValueError(
            f"locating the subject: no token of {text!r} covers {text[start:end]!r}; expected a tokenizer that "
            "keeps the text; use a fast tokenizer (use_fast=True)."
        )
    return inside[0], inside[-1] + 1


def _offsets(tokenizer: Any, text: str, ids: list[int]) -> list[tuple[int, int]] | None:
    """Character spans from a fast tokenizer, aligned to ``ids``; None where it has none or they differ."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError:
        # Some wrappers call themselves fast and have no offsets.
        return None
    plain: list[int] = list(encoded["input_ids"])
    lead = len(ids) - len(plain)
    # The model may put a BOS before them, a few put two tokens; anything else means that the tokenisations differ.
    if not 0 <= lead <= 2 or ids[lead:] != plain:
        return None
    return [(0, 0)] * lead + [(int(a), int(b)) for a, b in encoded["offset_mapping"]]


def _offsets_by_decoding(tokenizer: Any, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """Character spans from decoding ever longer prefixes, for tokenizers that give no offsets.

    A prefix that ends inside a character decodes to replacement marks; these do not count, so the token
    that completes a character is the one that covers it.
    """
    special = set(tokenizer.all_special_ids)
    lead = next((i for i, token in enumerate(ids) if token not in special), len(ids))
    ends: list[int] = [0] * lead
    for i in range(lead, len(ids)):
        decoded = tokenizer.decode(ids[lead : i + 1], clean_up_tokenization_spaces=False)
        complete = decoded.rstrip("\ufffd")
        if not text.startswith(complete):
            raise ValueError(
                f"locating the subject: the tokenizer decodes {text!r} to {decoded!r}; expected the same text back; "
                "use a fast tokenizer (use_fast=True), or write the prompt as the tokenizer does."
            )
        # Some decoders replace finished characters, too, while one after them is unfinished.
        ends.append(max(len(complete), *ends[-1:], 0))
    starts = [0, *ends[:-1]]
    # A piece of an unfinished character covers that character too.
    return [(a, max(b, a + 1) if i >= lead else b) for i, (a, b) in enumerate(zip(starts, ends, strict=True))]


def target_tokens(model: Model, prompt: str, target: str, *, prepend_bos: bool | None = None) -> Int[Tensor, " pos"]:
    """Ids with which ``prompt`` goes on to say ``target``: the tokens of "prompt target" after those of prompt.

    For byte-level tokenizers these are the tokens of ``" " + target``, as the published programs have it;
    for SentencePiece this is the rule that does not double the space.

    Raises:
        ValueError: If the target has no tokens, or adding it changes the prompt's own tokens.
    """
    before = encode(model, prompt, prepend_bos=prepend_bos)
    word = target.strip()
    after = encode(model, f"{prompt} {word}", prepend_bos=prepend_bos) if word else before
    if not torch.equal(after[: len(before)], before):
        raise ValueError(
            f"tokenising the target {target!r}: after {prompt!r} it merges with the prompt's last token; expected "
            "a prompt that ends at a word's end; drop trailing spaces or punctuation from the prompt."
        )
    if len(after) == len(before):
        raise ValueError(f"tokenising the target {target!r}: it has no tokens; expected a word; pass another target.")
    return after[len(before) :]


def pad(model: Model, rows: Sequence[Int[Tensor, " _"]]) -> TokenBatch:
    """Rows padded on the right to the longest, with the mask that says which tokens are real."""
    filler = getattr(model.tokenizer, "pad_token_id", None)
    lengths = tuple(len(row) for row in rows)
    device = host.device_of(model)
    tokens = torch.full((len(rows), max(lengths)), int(filler or 0), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return TokenBatch(tokens=tokens.to(device), attention_mask=mask.long().to(device), lengths=lengths)


def chunks(lengths: Sequence[int], size: int, *, one_length: bool) -> Iterator[list[int]]:
    """Indices of the rows of these lengths that run together; with ``one_length`` none of them needs padding."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(length if one_length else 0, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def check_rows(batch_size: object, operation: str, *, default: int) -> None:
    """Refuse a number of rows that is none.

    Raises:
        ValueError: If it is no integer of 1 or more.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(
            f"{operation}: batch_size is {batch_size!r}; expected an integer of 1 or more rows per forward pass; the "
            f"default is {default}."
        )
