"""Neurons and edits as memories: what is asked for, checked."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import attach, forward, host, tokens
from tl_edit.edit import Edit, LowRank
from tl_edit.host import Model
from tl_edit.memory.read import AnyTexts, Memories, Settings, read_memories
from tl_edit.memory.result import KeyValueMemory


def key_value_memory(
    model: Model,
    layers: int | Sequence[int],
    neurons: Sequence[int] | None,
    texts: AnyTexts,
    *,
    n_neurons: int | None = None,
    n_triggers: int = 25,
    n_tokens: int = 10,
    window: int = 32,
    one_per_text: bool = True,
    final_norm: bool = True,
    negative: bool = False,
    max_tokens: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> KeyValueMemory:
    """Neurons of MLPs as memories: what triggers their keys, and what their values say (Geva et al. 2021).

    ``mlp(x) = f(x W_in + b_in) W_out + b_out`` is a sum over neurons of a coefficient times a row of ``W_out``. The
    triggers of a neuron are the prefixes of texts after which its coefficient, the input of ``W_out``, is largest. Its
    value is read by the unembedding. In upper layers the value's top token is often the one that follows the trigger:
    the share of memories of which that is true is the agreement, and it is nothing without its control, values of
    other neurons in their places.

    One pass over the texts ends at the last of the layers. Of each trigger a few tokens are kept: about 12 bytes times
    neurons, ``n_triggers`` and ``window`` a layer, 30 MB for all of GPT-2 small's in one. A BOS is no trigger, nor is
    padding. Without a BOS the first token takes its place as the one whose activations are unlike all others.

    Args:
        model: A HookedTransformer or TransformerBridge. Edits that are applied, and hooks, take part.
        layers: A layer, or several, counted from 0.
        neurons: Numbers of neurons, the same in each layer; None for all (or ``n_neurons``).
        texts: As for `second_moment`: strings, token ids, rows of a dataset.
        n_neurons: So many neurons of each layer instead, drawn by ``seed``; the paper's authors read ten a layer.
        n_triggers: Triggers of each neuron, the paper's 25.
        n_tokens: Tokens of each value, of the top and of the bottom.
        window: Tokens that are kept of a trigger, the last ones.
        one_per_text: Whether a text counts once, at its strongest token. The paper ranks all prefixes of all sentences:
            that is False, and takes longer.
        final_norm: Whether the linear part of the norms between the MLP's output and the unembedding is applied: taking
            the mean away, and the gains; their division is left out, as it depends on all else. So raw and processed
            models say the same. False for the paper's ``v E``, the unembedding alone.
        negative: Whether to look for the most negative coefficients, and so turn values round, too. Activations of
            gated MLPs (Llama, Gemma) are as often negative; ReLU has none.
        max_tokens: Stop after so many tokens; None for all.
        max_length: Cut texts after so many tokens; None for the model's context.
        seed: Of the neurons that are drawn, of the permuted values, and of which texts ``max_tokens`` takes.
        prepend_bos: Whether strings begin with a BOS; None for the model's own default.
        batch_tokens: Tokens per forward pass, padding included.
        progress: Whether to show a progress bar.

    Returns:
        `KeyValueMemory`: ``triggers(neuron)``, ``top_tokens(neuron)``, ``agreement`` and ``chance`` by layer; a table
        in a notebook, ``view()`` for texts, ``plot()`` for the agreement.

    Raises:
        ValueError: For layers and neurons that do not exist, texts without tokens or of the wrong kind, ``final_norm``
            switched off where the norm is in the unembedding, activations that are not finite, active dropout.
        MemoryError: If memory runs out, naming the ``batch_tokens`` to try.
    """
    operation = "key_value_memory"
    given = _settings(
        model,
        operation,
        n_triggers=n_triggers,
        n_tokens=n_tokens,
        window=window,
        one_per_text=one_per_text,
        final_norm=final_norm,
        negative=negative,
        max_tokens=max_tokens,
        max_length=max_length,
        seed=seed,
        prepend_bos=prepend_bos,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    chosen = _chosen_layers(model, layers, operation)
    memories: list[Memories] = []
    generator = torch.Generator().manual_seed(seed)
    for layer in chosen:
        weight = host.w_out(model, layer)
        numbers = _chosen_neurons(neurons, n_neurons, len(weight), layer, generator, operation)
        values = weight if len(numbers) == len(weight) else weight[torch.tensor(numbers, device=weight.device)]
        names = tuple(f"layer {layer}, neuron {number}" for number in numbers)
        sign = -1 if negative else 1
        memories.append(Memories(layer=layer, numbers=numbers, names=names, keys=None, values=values, sign=sign))
    return read_memories(model, memories, texts, given, operation, f"neurons of {host.model_name(model)}")


def edit_memory(
    model: Model,
    edit: Edit,
    texts: AnyTexts,
    *,
    n_triggers: int = 25,
    n_tokens: int = 10,
    window: int = 32,
    one_per_text: bool = True,
    final_norm: bool = True,
    negative: bool = False,
    max_tokens: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_tokens: int = 4096,
    allow_mismatch: bool = False,
    progress: bool = True,
) -> KeyValueMemory:
    """What an edit wrote, as memories: the contexts that trigger it anywhere in some texts, and what it says there.

    An edit adds ``key @ left @ right`` to the answer of ``W_out``. Of each of its factors, the value is the row of
    ``right``, made of length 1, and the coefficient at a token is ``key . left`` times the length that it had: how far
    the answer is moved, as in `Edit.collateral`, with a sign. ROME has one factor, in which ``left`` is ``C^-1 k``;
    MEMIT has one for each request. Of edits that were added or truncated, factors are no more than directions, whose
    sign may be turned.

    Of an edit of several layers that is not applied, the keys are those of the model with the earlier layers' changes
    on, by hooks. No weight is written.

    Args:
        model: The model that the edit was computed on, with or without it.
        edit: The edit.
        texts: As for `key_value_memory`, which explains the arguments that are not here.
        n_triggers: Triggers of each factor.
        n_tokens: Tokens of each value.
        window: Tokens that are kept of a trigger.
        one_per_text: Whether a text counts once, at its strongest token.
        final_norm: Whether the linear part of norms is applied to values.
        negative: Whether to look for the most negative coefficients.
        max_tokens: Stop after so many tokens.
        max_length: Cut texts after so many tokens.
        seed: Of the permuted values, and of which texts ``max_tokens`` takes.
        prepend_bos: Whether strings begin with a BOS; None for what the edit was computed with.
        batch_tokens: Tokens per forward pass.
        allow_mismatch: Whether the model may have other weights than the edit was computed on.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If ``edit`` is none, changes nothing, or is of other weights, and as `key_value_memory`.
        MemoryError: If memory runs out, naming the ``batch_tokens`` to try.
    """
    operation = "edit_memory"
    if not isinstance(cast(object, edit), Edit):
        raise ValueError(
            f"{operation}: edit is of type {type(edit).__name__}; expected an Edit; pass what rome_edit(model, "
            "request, moments) returns."
        )
    given = _settings(
        model,
        operation,
        n_triggers=n_triggers,
        n_tokens=n_tokens,
        window=window,
        one_per_text=one_per_text,
        final_norm=final_norm,
        negative=negative,
        max_tokens=max_tokens,
        max_length=max_length,
        seed=seed,
        prepend_bos=edit.provenance.prepend_bos if prepend_bos is None else prepend_bos,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    if all(_is_nothing(delta) for delta in edit.deltas.values()):
        raise ValueError(
            f"{operation}: {edit!r} changes nothing, as its changes are zero or cancel; expected an edit that wrote "
            "something; pass one that was not multiplied by 0 or taken from itself."
        )
    applied = edit.check_fits(model, operation, allow_mismatch=allow_mismatch)
    hooks = [] if applied else edit.hooks(model, allow_mismatch=True)
    subjects = [request.subject for request in edit.requests]
    memories = [
        _factors(layer, delta.left, delta.right, subjects, -1 if negative else 1)
        for layer, delta in edit.deltas.items()
    ]
    with ExitStack() as stack:
        if len(memories) > 1 and hooks:
            stack.enter_context(attach.attached(model, hooks))
        return read_memories(model, memories, texts, given, operation, repr(edit), of_edit=True)


def _is_nothing(delta: LowRank) -> bool:
    """Whether a change is zero but for rounding, as that of an edit less itself is."""
    return delta.norm() <= 1e-7 * float((forward.lengths(delta.left.T) * forward.lengths(delta.right)).sum())


def _factors(
    layer: int, left: Float[Tensor, "d_mlp rank"], right: Float[Tensor, "rank d_model"], subjects: list[str], sign: int
) -> Memories:
    """An edit's change of a layer, factor by factor, values of length 1."""
    sizes = forward.lengths(right)
    numbers = tuple(range(left.shape[1]))
    named = subjects if len(subjects) == len(numbers) else [f"factor {number}" for number in numbers]
    return Memories(
        layer=layer,
        numbers=numbers,
        names=tuple(f"layer {layer}, {name}" for name in named),
        keys=left * sizes,
        values=right / torch.where(sizes > 0, sizes, 1.0)[:, None],
        sign=sign,
    )


def _settings(model: Model, operation: str, **given: Any) -> Settings:
    """Checked."""
    host.check_ready(model, operation)
    least = {"n_triggers": 1, "n_tokens": 1, "window": 1, "batch_tokens": 1, "max_tokens": 1, "max_length": 1}
    for name, smallest in least.items():
        value = given[name]
        if value is None and name.startswith("max_"):
            continue
        if type(value) is not int or value < smallest:
            raise ValueError(
                f"{operation}: {name} is {value!r}; expected an integer of {smallest} or more; leave it out."
            )
    for name in ("one_per_text", "final_norm", "negative", "progress"):
        if type(given[name]) is not bool:
            raise ValueError(f"{operation}: {name} is {given[name]!r}; expected True or False; leave it out.")
    if type(given["seed"]) is not int or not 0 <= given["seed"] < 2**63:
        raise ValueError(
            f"{operation}: seed is {given['seed']!r}; expected an integer from 0 to 2**63 - 1; the default is 0."
        )
    if not given["final_norm"] and host.is_processed(model):
        raise ValueError(
            f"{operation}: final_norm is False, but the weights of {host.model_name(model)} are processed, and the "
            "final norm's gain is in its unembedding; expected raw weights; load the model without processing, or "
            "leave final_norm out."
        )
    given["prepend_bos"] = tokens.resolve_bos(model, given["prepend_bos"])
    return Settings(**given)


def _chosen_layers(model: Model, layers: object, operation: str) -> list[int]:
    listed = cast(Sequence[int], [layers] if type(layers) is int else layers)
    host.check_layers(model, listed, operation)
    if len(set(listed)) < len(listed):
        raise ValueError(f"{operation}: layers {list(listed)} hold one twice; expected each once; leave it out.")
    return list(listed)


def _chosen_neurons(
    neurons: object, n_neurons: object, width: int, layer: int, generator: torch.Generator, operation: str
) -> tuple[int, ...]:
    """Numbers of neurons of a layer."""
    if n_neurons is not None:
        if neurons is not None:
            raise ValueError(
                f"{operation}: found both neurons and n_neurons={n_neurons!r}; expected one of them: neurons says "
                f"which, n_neurons how many at random; leave n_neurons out, or pass neurons=None."
            )
        if type(n_neurons) is not int or not 1 <= n_neurons <= width:
            raise ValueError(
                f"{operation}: n_neurons is {n_neurons!r}; expected an integer from 1 to {width}, the neurons of layer "
                f"{layer}; leave it out for all of them."
            )
        drawn = torch.randperm(width, generator=generator)[:n_neurons]
        return tuple(sorted(map(int, drawn)))
    if neurons is None:
        return tuple(range(width))
    example = "pass e.g. neurons=[0, 1], or neurons=None with n_neurons=10 for some at random"
    if isinstance(neurons, str) or not isinstance(neurons, Sequence):
        raise ValueError(f"{operation}: neurons is {neurons!r}; expected a list of their numbers; {example}.")
    listed = list(cast(Sequence[object], neurons))
    strange = [each for each in listed if type(each) is not int or not 0 <= each < width]
    if not listed or strange or len(set(listed)) < len(listed):
        found = f"holds {strange[0]!r}" if strange else "is empty" if not listed else "holds one twice"
        raise ValueError(
            f"{operation}: neurons {found}; layer {layer} of the model has neurons 0 to {width - 1}; expected some of "
            f"them, each once; {example}."
        )
    return tuple(cast(list[int], listed))
