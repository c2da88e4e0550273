"""Prefixes: texts of the model's own that stand before a prompt, so that an edit holds in context.

ROME averages keys and the loss over the bare prompt and texts the model generates itself from a BOS. The
published program makes 10 of 5 and 10 of 10 tokens, the BOS counted, by top-5 sampling without a seed (the
paper's section 3.1 says 50 of 2 to 10 tokens, its appendix 20 of 5 and 10). Here they are seeded and returned
to you; nothing is cached.
"""

import unicodedata
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.host import Model


def generate_prefixes(
    model: Model, *, lengths: Sequence[int] = (5, 10), n_per_length: int = 10, top_k: int = 5, seed: int = 0
) -> tuple[str, ...]:
    """Templates ``"generated text. {}"`` by the published rule.

    Args:
        model: A HookedTransformer or TransformerBridge with a tokenizer that has a BOS or EOS token.
        lengths: Lengths in tokens, the BOS counted; one group of prefixes each.
        n_per_length: Prefixes per group.
        top_k: Each token is drawn among so many likeliest, with renormalised probabilities.
        seed: Seed of the draws.

    Raises:
        ValueError: If the tokenizer has neither BOS nor EOS, the numbers are too small, or the model's probabilities
            are not finite.
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
    start = model.tokenizer.bos_token_id
    if start is None:
        start = model.tokenizer.eos_token_id
    if start is None:
        raise ValueError(
            f"generate_prefixes: the tokenizer of {host.model_name(model)} has neither a BOS nor an EOS token to start "
            "from; expected one; pass prefixes= of your own, such as 'It was. {}'."
        )
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        _as_template(model.tokenizer.decode(row[1:], skip_special_tokens=True))
        for length in lengths
        for row in _sample(model, int(start), n_per_length, length, top_k, generator)
    )


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
    model: Model, start: int, rows: int, length: int, top_k: int, generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    sampled = torch.full((rows, 1), start)
    while sampled.shape[1] < length:
        log_probs = forward.last_log_probs(model, tokens.pad(model, list(sampled))).cpu()
        top = log_probs.topk(min(top_k, log_probs.shape[-1]))
        choice = torch.multinomial(top.values.exp(), 1, generator=generator)
        sampled = torch.cat([sampled, top.indices.gather(-1, choice)], dim=1)
    return sampled


def _as_template(text: str) -> str:
    """Generated text as a template, without braces, which would read as placeholders."""
    plain = unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("{", " ").replace("}", " ")
    return plain + ". {}"
