"""Reading the key and the value that an MLP holds for a fact.

In TransformerLens' row convention ``value = key @ W_out + b_out``. The key of a request at layer ``l`` is the
input of ``W_out`` (``blocks.{l}.mlp.hook_post``) at the subject's last token; the value is what ``W_out``
answers there. Keys depend on the text before the subject; ROME averages them over the bare prompt and a few
prefixes (Meng et al. 2022, eq. 3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce  # pyright: ignore[reportUnknownVariableType]
from jaxtyping import Float
from torch import Tensor

from tl_edit import attach, forward, host, show, tokens
from tl_edit.counted import counted
from tl_edit.forward import activations, at_least_float32
from tl_edit.host import Model
from tl_edit.request import EditRequest, as_prefixes, as_requests

_SHOWN = 20
"""Requests that a table shows."""
_DRAWN = 4
"""Layers that a picture shows."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KeysValues:
    """Keys and values of requests at the lookup position, per layer, on the CPU.

    Those of the bare prompts are in the model's dtype, the means in at least float32.
    """

    requests: tuple[EditRequest, ...]
    layers: tuple[int, ...]
    prefixes: tuple[str, ...]
    """The templates beside the bare prompt that the means run over."""
    prepend_bos: bool
    positions: tuple[int, ...]
    """Lookup position of each bare prompt, BOS counted."""
    keys: dict[int, Float[Tensor, "request d_mlp"]]
    """By layer: keys of the bare prompts."""
    values: dict[int, Float[Tensor, "request d_model"]]
    """By layer: values of the bare prompts."""
    mean_keys: dict[int, Float[Tensor, "request d_mlp"]]
    """By layer: keys averaged over the bare prompt and ``prefixes``."""
    mean_values: dict[int, Float[Tensor, "request d_model"]]
    """By layer: values averaged likewise."""

    def cosines(self, layer: int) -> Float[Tensor, "request request"]:
        """Cosines between the mean keys of the requests: how far an edit at one is an edit at the other.

        Raises:
            ValueError: If the layer was not read.
        """
        if layer not in self.mean_keys:
            raise ValueError(
                f"KeysValues.cosines: no layer {layer!r}; expected one of {list(self.layers)}; read it with "
                "extract_keys_values."
            )
        keys = self.mean_keys[layer].double()
        keys = keys / forward.lengths(keys).clamp(min=torch.finfo(keys.dtype).tiny)[:, None]
        return keys @ keys.T

    def plot(self, ax: Any = None, *, layer: int | None = None) -> Any:
        """The `cosines` between the requests' mean keys, as a matrix; returns the axes, one or a list.

        Args:
            ax: Axes to draw on, one for each matrix; None for a new figure.
            layer: Which of the layers; None for all, the first four of more.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the layer was not read.
        """
        rows = [f"{i}: {request.subject}" for i, request in enumerate(self.requests)]
        columns = [str(i) for i in range(len(self.requests))]
        layers = self.layers[:_DRAWN] if layer is None else (layer,)
        if len(layers) == 1:
            title = f"mean keys of layer {layers[0]}"
            return show.plot_matrix(self.cosines(layers[0]), ax, rows=rows, columns=columns, unit="cosine", title=title)
        more = f" (the first {_DRAWN} of {len(self.layers)} layers; others by layer=)"
        return show.plot_heatmaps(
            [self.cosines(each) for each in layers],
            ax,
            titles=[f"layer {each}" for each in layers],
            rows=rows,
            columns=columns,
            colours=[show.BOTH_WAYS] * len(layers),
            low=None,
            unit="cosine",
            heading=f"mean keys{more if len(self.layers) > _DRAWN else ''}",
            xlabels=["request"] * len(layers),
            choice="layer",
        )

    def _repr_html_(self) -> str:
        """A table of the first requests: where they were read, and lengths of keys and values."""
        shown = self.requests[:_SHOWN]
        lengths = {
            (name, layer): forward.lengths(table[layer][:_SHOWN].double())
            for layer in self.layers
            for name, table in (("|key|", self.keys), ("|value|", self.values))
        }
        rows = [
            (str(request), str(self.positions[i]), *(f"{float(each[i]):.3g}" for each in lengths.values()))
            for i, request in enumerate(shown)
        ]
        left_out = f"; the first {_SHOWN} are shown" if len(self.requests) > _SHOWN else ""
        columns = ("request", "position", *(f"{name}, layer {layer}" for name, layer in lengths))
        return show.table(rows, columns=columns, heading=f"{self!r}{left_out}")

    def __repr__(self) -> str:
        return (
            f"KeysValues({counted(len(self.requests), 'request')}, layers {list(self.layers)}, "
            f"mean over {counted(1 + len(self.prefixes), 'context')})"
        )


def extract_keys_values(
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    layers: Sequence[int],
    *,
    prefixes: Iterable[str] | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = 64,
) -> KeysValues:
    """Keys and values of ``requests`` at ``layers``, in one pass that ends at the last of the layers.

    Prompts are cut after the subject, since nothing later can change what is read there, and padded on the right.
    Where the model carries hooks of your own, they see every prompt whole and unpadded, in batches of prompts of one
    length, so that a hook that counts positions, also from the end, acts as in a run of yours.

    Args:
        model: A HookedTransformer or TransformerBridge.
        requests: One request or several.
        layers: Layers to read, counted from 0.
        prefixes: Templates such as ``"It was. {}"`` to average over beside the bare prompt; None for none.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default.
        batch_size: Rows per forward pass.

    Raises:
        ValueError: For layers that do not exist or have no dense ``W_out``, malformed prefixes, prompts in which
            the subject cannot be located, active dropout.
    """
    operation = "extract_keys_values"
    asked = as_requests(requests, operation)
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"{operation}: batch_size {batch_size!r}; expected 1 or more rows; the default is 64.")
    host.check_ready(model, operation)
    host.check_layers(model, layers, operation)
    bos = tokens.resolve_bos(model, prepend_bos)
    templates = ("{}", *as_prefixes(prefixes, operation))
    prompts = [
        tokens.tokenize_request(model, request, prefix=template, prepend_bos=bos)
        for request in asked
        for template in templates
    ]
    names = {layer: (host.key_name(layer), host.value_name(model, layer)) for layer in layers}
    read = read_lookups(model, prompts, [name for pair in names.values() for name in pair], batch_size)

    def by_request(name: str) -> Float[Tensor, "request prefix width"]:
        return rearrange(read[name], "(request prefix) width -> request prefix width", request=len(asked))

    keys = {layer: by_request(key) for layer, (key, _) in names.items()}
    values = {layer: by_request(value) for layer, (_, value) in names.items()}
    return KeysValues(
        requests=asked,
        layers=tuple(layers),
        prefixes=templates[1:],
        prepend_bos=bos,
        positions=tuple(prompt.subject_last for prompt in prompts[:: len(templates)]),
        keys={layer: key[:, 0].clone() for layer, key in keys.items()},
        values={layer: value[:, 0].clone() for layer, value in values.items()},
        mean_keys={layer: _mean(key) for layer, key in keys.items()},
        mean_values={layer: _mean(value) for layer, value in values.items()},
    )


def read_lookups(
    model: Model, prompts: Sequence[tokens.Prompt], names: Sequence[str], batch_size: int = 64
) -> dict[str, Float[Tensor, "prompt _"]]:
    """By name: the activations of ``prompts`` at their lookup positions, on the CPU, in the model's dtype.

    What `extract_keys_values` says of cut and whole prompts holds here.
    """
    read: dict[str, list[Tensor]] = {name: [] for name in names}
    whole = attach.foreign_hook(model) is not None
    order: list[int] = []
    for chunk in tokens.chunks([len(prompt.tokens) for prompt in prompts], batch_size, one_length=whole):
        # Causal attention: what follows the lookup position cannot change what is read there, unless by a hook.
        ends = [len(prompts[i].tokens) if whole else prompts[i].subject_last + 1 for i in chunk]
        batch = tokens.pad(model, [prompts[i].tokens[:end] for i, end in zip(chunk, ends, strict=True)])
        rows, lookup = torch.arange(len(chunk)), torch.tensor([prompts[i].subject_last for i in chunk])
        for name, act in activations(model, batch, list(read)).items():
            read[name].append(act[rows, lookup].cpu())
        order += chunk
    back = torch.tensor(order).argsort()
    return {name: torch.cat(several)[back] for name, several in read.items()}


def _mean(over_prefixes: Float[Tensor, "request prefix width"]) -> Float[Tensor, "request width"]:
    """Mean over prefixes, summed in float64 and rounded once, to float32 at least: it goes into a solve."""
    wide = at_least_float32(over_prefixes).dtype
    return reduce(over_prefixes.double(), "request prefix width -> request width", "mean").to(wide)
