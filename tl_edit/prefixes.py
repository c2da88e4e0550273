"""Prefixes: texts of the model's own that stand before a prompt, so that an edit holds in context.

ROME averages keys and the loss over the bare prompt and texts the model generates itself from a BOS. The
published program makes 10 of 5 and 10 of 10 tokens, the BOS counted, by top-5 sampling without a seed (the
paper's section 3.1 says 50 of 2 to 10 tokens, its appendix 20 of 5 and 10). MEMIT's program lets the model go on from
five words instead, without a BOS: five texts of 10 tokens, the word counted. Here they are seeded and returned to you;
nothing is cached.
"""

import unicodedata
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.host import Model

MEMIT_STARTS = ("The", "Therefore", "Because", "I", "You")


def generate_prefixes(
    model: Model,
    *,
    lengths: Sequence[int] = (5, 10),
    n_per_length: int = 10,
    top_k: int = 5,
    seed: int = 0,
    starts: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Templates ``"generated text. {}"`` by the published rule.

    Args:
        model: A HookedTransformer or TransformerBridge with a tokenizer that has a BOS or EOS token, or ``starts``.
        lengths: Lengths in tokens, the BOS or the start counted; one group of prefixes each.
        n_per_length: Prefixes per group.
        top_k: Each token is drawn among so many likeliest, with renormalised probabilities.
        seed: Seed of the draws.
        starts: Words that the texts begin with in turn, without a BOS; None to begin at a lone BOS. MEMIT's program has
            ("The", "Therefore", "Because", "I", "You") and ``lengths=(10,), n_per_length=5``.

    Raises:
        ValueError: If the tokenizer has neither BOS nor EOS, the numbers are too small, a start is longer than a text,
            or the model's probabilities are not finite.
    """
    _check_types(lengths, {"n_per_length": n_per_length, "top_k": top_k, "seed": seed})
    if n_per_length < 1 or top_k < 1 or min(lengths, default=0) < 2:
        raise ValueError(
            f"generate_prefixes: n_per_length {n_per_length}, top_k {top_k}, lengths {tuple(lengths)}; expected at "
            "least 1, 1, and lengths of 2 or more (the BOS counts); the published rule is 10, 5, (5, 10)."
        )
    context = int(model.cfg.n_ctx)
    if max(lengths) > context:
        raise ValueError(
            f"generate_prefixes: lengths {tuple(lengths)}; {host.model_name(model)} has a context of {context}; "
            "expected prefixes that leave room for a prompt; the published lengths are (5, 10)."
        )
    host.check_ready(model, "generate_prefixes")
    tokens.resolve_bos(model, False)
    begun = [_bos(model)] if starts is None else _begun(model, starts, min(lengths))
    generator = torch.Generator().manual_seed(seed)
    # What is no text of the model's own, a BOS, does not go into the template.
    skip = 1 if starts is None else 0
    return tuple(
        _as_template(model.tokenizer.decode(row[skip:], skip_special_tokens=True))
        for length in lengths
        for row in _sample(model, [begun[i % len(begun)] for i in range(n_per_length)], length, top_k, generator)
    )


def _bos(model: Model) -> Int[Tensor, " pos"]:
    start = model.tokenizer.bos_token_id
    if start is None:
        start = model.tokenizer.eos_token_id
    if start is None:
        raise ValueError(
            f"generate_prefixes: the tokenizer of {host.model_name(model)} has neither a BOS nor an EOS token to start "
            "from; expected one; pass prefixes= of your own, such as 'It was. {}', or starts= to generate_prefixes, "
            "such as ('The', 'Because')."
        )
    return torch.tensor([int(start)])


def _begun(model: Model, starts: object, shortest: int) -> list[Int[Tensor, " pos"]]:
    """Each start as tokens, checked."""
    listed = [] if isinstance(starts, str) or not isinstance(starts, Sequence) else list(cast(Sequence[object], starts))
    words = [word for word in listed if isinstance(word, str) and word.strip()]
    if not words or len(words) < len(listed):
        raise ValueError(
            f"generate_prefixes: starts is {starts!r}; expected words, or None for a lone BOS; MEMIT's are "
            f"{MEMIT_STARTS}."
        )
    begun = [tokens.encode(model, word, prepend_bos=False) for word in words]
    for word, row in zip(words, begun, strict=True):
        if len(row) > shortest:
            raise ValueError(
                f"generate_prefixes: the start {word!r} has {len(row)} tokens; expected at most {shortest}, the "
                "length of the texts; pass a shorter start or greater lengths."
            )
    return begun


def _check_types(lengths: object, numbers: dict[str, object]) -> None:
    listed = list(cast(Sequence[object], lengths)) if isinstance(lengths, Sequence) else None
    if listed is None or any(type(length) is not int for length in listed):
        raise ValueError(
            f"generate_prefixes: lengths is {lengths!r}; expected lengths in tokens, one group of prefixes each; the "
            "published ones are (5, 10)."
        )
    for name, number in numbers.items():
        if type(number) is not int:
            raise ValueError(
                f"generate_prefixes: {name} is {number!r}; expected an integer; leave it out for the default."
            )


def _sample(
    model: Model, starts: Sequence[Int[Tensor, " _"]], length: int, top_k: int, generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    rows = list(starts)
    while growing := [i for i, row in enumerate(rows) if len(row) < length]:
        log_probs = forward.last_log_probs(model, tokens.pad(model, [rows[i] for i in growing])).cpu()
        top = log_probs.topk(min(top_k, log_probs.shape[-1]))
        choice = torch.multinomial(top.values.exp(), 1, generator=generator)
        for i, token in zip(growing, top.indices.gather(-1, choice), strict=True):
            rows[i] = torch.cat([rows[i], token])
    return torch.stack(rows)


def _as_template(text: str) -> str:
    """Generated text as a template, without braces, which would read as placeholders."""
    plain = unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("{", " ").replace("}", " ")
    return plain + ". {}"
