"""Models, edits and prompts of this folder's tests."""

import functools
import gc

import tiny_models
import torch
from some_edits import REQUEST, random_deltas

from tl_edit import Edit, host, tokens

PROMPT = "The Eiffel Tower is in"
ANSWERS = ("Rome", "Paris")
SUBJECT = "Eiffel Tower"
FAMILIES = ("gpt2", "gpt_neox", "gptj", "llama", "gemma2", "qwen2", "opt", "phi")
CASES = tiny_models.available_cases(FAMILIES)
FEW = tiny_models.available_cases(("gpt2", "gemma2"))


@functools.cache
def model_of(case):
    with torch.inference_mode(False):
        return tiny_models.build(case, dtype=torch.float64)


def edit_of(model, layers=(1,)) -> Edit:
    """Random, with the model's own habit of a BOS."""
    bos = tokens.resolve_bos(model, None)
    return Edit.of(model, random_deltas(model, layers), method="test", requests=(REQUEST,), prepend_bos=bos)


def ids_of(model, text: str) -> torch.Tensor:
    return model.to_tokens(text)


def first_of(model, answer: str) -> int:
    """The first token with which the prompt goes on to say it."""
    n = ids_of(model, PROMPT).shape[1]
    return int(ids_of(model, f"{PROMPT} {answer}")[0, n])


def run_by_hand(model, text: str, edit=None):
    """Logits ``[pos d_vocab]`` and all activations, the edit written into the weights and taken out again."""
    if edit is not None:
        edit.apply(model)
    try:
        with torch.no_grad():
            logits, cache = model.run_with_cache(ids_of(model, text))
    finally:
        if edit is not None:
            edit.undo(model)
    return logits[0], cache


def tolerance(case) -> float:
    """Bridges have steps in float32, and so has the processing of weights; RMS norms of Hugging Face are in float32."""
    return 1e-10 if case.interface == tiny_models.HOOKED_TRANSFORMER else 2e-5


def kept_at_once(model, follow, shape) -> int:
    """How many tensors of a shape there are when a second run reaches the last layer's end, beyond those before."""

    def count():
        gc.collect()
        return sum(type(each) is torch.Tensor and each.shape == shape for each in gc.get_objects())

    found, before = [], count()

    def look(act, hook=None):
        found.append(count() - before)

    follow([(f"blocks.{host.n_layers(model) - 1}.hook_resid_post", look)])
    return max(found)


def hooks_left(model) -> list[str]:
    points = {name for name, point in model.hook_dict.items() if point.fwd_hooks}
    modules = {name for name in ("unembed", "ln_final") if getattr(model, name)._forward_hooks}
    return sorted(points | modules)
