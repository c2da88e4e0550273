"""Texts that a model writes: prompts, and what it goes on to say.

As published (Meng et al. 2022, section 3.3): one text for each prompt, each token drawn among the five likeliest with
their probabilities renormalised, until the text has 100 tokens, the prompt's counted (and a BOS's, which the published
programs do not have). A text does not end at an EOS token: the model goes on, and the token is left out of the text.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args
from unicodedata import normalize

from jaxtyping import Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.attach import as_hooks
from tl_edit.evaluate.fluency import TfIdf
from tl_edit.evaluate.sampling import EngineName, Start, sample, uniforms
from tl_edit.host import Model, NamedHook
from tl_edit.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Generation(Settings):
    """How texts are generated and judged."""

    n_tokens: int = 100
    """Length of each text in tokens, its prompt counted (published: 100)."""
    top_k: int = 5
    """Each token is drawn among so many likeliest (published: 5)."""
    seed: int = 0
    """Of the draws (the published programs have none)."""
    tfidf: TfIdf | None = None
    """For the reference score; None for none (published: the released files, see `TfIdf.load`)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        check_numbers("Generation", self.n_tokens, self.top_k, self.seed)
        if self.tfidf is not None and not isinstance(cast(object, self.tfidf), TfIdf):
            raise ValueError(
                f"Generation: tfidf is of type {type(self.tfidf).__name__}; expected a TfIdf, or None for no reference "
                "score; pass TfIdf.load(folder) or TfIdf.fit(texts)."
            )


def generate_texts(
    model: Model,
    prompts: str | Sequence[str],
    *,
    n_tokens: int = 100,
    top_k: int = 5,
    seed: int = 0,
    hooks: Sequence[NamedHook] = (),
    prepend_bos: bool | None = None,
    batch_size: int = 128,
    engine: EngineName = "auto",
) -> tuple[str, ...]:
    """Let the model go on from each prompt; the text, prompt included, in Unicode's form NFKD.

    Special tokens are left out, and an empty line becomes a space. A text depends on the seed, its prompt, and how many
    equal prompts come before it; not on the others, and not on ``batch_size`` but for rounding, which may rarely decide
    between two tokens.

    Keys and values of earlier positions are kept, which is checked against ordinary passes before and after; where that
    cannot be, as with hooks on the model, each token costs a whole pass.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompts: One prompt or several.
        n_tokens: Length of each text in tokens, the prompt and a BOS counted.
        top_k: Each token is drawn among so many likeliest, with renormalised probabilities.
        seed: Seed of the draws.
        hooks: Hooks of your own for all passes, as (name, function) pairs; they see rows whose prompts are of one
            length, whole and without padding, with what is generated so far.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default.
        batch_size: Rows per forward pass.
        engine: "auto", or "plain" for whole passes only.

    Raises:
        ValueError: For no prompts, prompts that leave nothing to generate, texts longer than the context, hooks that
            are none, active dropout, and probabilities that are not finite.
        MemoryError: When memory runs out, with the ``batch_size`` to try.
    """
    operation = "generate_texts"
    check_numbers(operation, n_tokens, top_k, seed)
    tokens.check_rows(batch_size, operation, default=128)
    ready = as_hooks(hooks, operation)
    if engine not in get_args(EngineName):
        raise ValueError(f"{operation}: engine is {engine!r}; expected 'auto' or 'plain'; leave it out for 'auto'.")
    host.check_ready(model, operation)
    bos = tokens.resolve_bos(model, prepend_bos)
    starts = starts_of(model, _as_prompts(prompts, operation), n_tokens, seed, operation, prepend_bos=bos)
    with forward.memory_advice(operation, "batch_size", batch_size):
        rows, _ = sample(model, starts, ready, n_tokens=n_tokens, top_k=top_k, batch_size=batch_size, engine=engine)
    return tuple(as_text(model, row) for row in rows)


def starts_of(
    model: Model, prompts: Sequence[str], n_tokens: int, seed: int, operation: str, *, prepend_bos: bool
) -> list[Start]:
    """Prompts that texts of ``n_tokens`` are to begin with, tokenised.

    Raises:
        ValueError: If the context does not hold the texts, or a prompt leaves nothing to generate.
    """
    context = int(model.cfg.n_ctx)
    if n_tokens > context:
        raise ValueError(
            f"{operation}: n_tokens is {n_tokens}; {host.model_name(model)} has a context of {context}; expected texts "
            f"that fit; pass n_tokens={context} or less (entropies of texts of different lengths do not compare)."
        )
    rows = [tokens.encode(model, prompt, prepend_bos=prepend_bos) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) >= n_tokens:
            raise ValueError(
                f"{operation}: the prompt {prompt!r} has {len(row)} tokens; expected less than n_tokens, {n_tokens}, "
                "which counts the prompt's; shorten it, or pass a greater n_tokens."
            )
    drawn = uniforms(prompts, n_tokens, seed)
    return [Start(row, numbers) for row, numbers in zip(rows, drawn, strict=True)]


def as_text(model: Model, row: Int[Tensor, " pos"]) -> str:
    """A row as text, as published: in the form NFKD, without empty lines and special tokens."""
    return normalize("NFKD", model.tokenizer.decode(row, skip_special_tokens=True)).replace("\n\n", " ")


def check_numbers(operation: str, n_tokens: object, top_k: object, seed: object) -> None:
    """Refuse numbers that texts cannot be generated by.

    Raises:
        ValueError: naming the number.
    """
    for name, number, least in (("n_tokens", n_tokens, 2), ("top_k", top_k, 1), ("seed", seed, None)):
        if type(number) is not int or (least is not None and number < least):
            expected = "an integer" if least is None else f"an integer of {least} or more"
            raise ValueError(f"{operation}: {name} is {number!r}; expected {expected}; leave it out for the default.")


def _as_prompts(prompts: object, operation: str) -> tuple[str, ...]:
    """One prompt or several.

    Raises:
        ValueError: If there is none, or something else among them.
    """
    listed: list[object] = [prompts]
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        listed = list(cast(Sequence[object], prompts))
    checked = tuple(prompt for prompt in listed if isinstance(prompt, str) and prompt.strip())
    if not checked or len(checked) < len(listed):
        raise ValueError(
            f"{operation}: prompts is {reprlib.repr(cast(object, prompts))}; expected one prompt or several, each of "
            "some words; pass e.g. ['The Eiffel Tower is', 'Near the Louvre']."
        )
    return checked
