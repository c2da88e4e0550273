"""Which model keys come from: what it computes for one fixed sequence of tokens.

Keys are the same behind both interfaces and under weight processing, and nearly the same in half precision, so they
tell a model by what it does, and not by how it was loaded.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import host, tokens
from tl_edit.forward import activations, at_least_float32, length
from tl_edit.host import Model

LENGTH = 16
REFUSED = 0.8
"""Distance from which a model is another one: those of other seeds are 1.0 to 1.4 away."""
DOUBTED = 0.2
"""Distance from which a model is perhaps another one: half precision is up to 0.03 away in three layers and grows with
the depth, noise of a tenth of each weight matrix's spread 0.14 to 0.67."""


def probe(model: Model, n: int) -> Int[Tensor, " pos"]:
    """The tokens ``(37 i + 5) % min(d_vocab, 256)``, without a BOS, at most as many as the context holds."""
    size = min(int(model.cfg.d_vocab), 256)
    return torch.tensor([(37 * i + 5) % size for i in range(min(n, int(model.cfg.n_ctx)))])


def probe_keys(model: Model, layers: Sequence[int]) -> dict[int, Float[Tensor, "pos d_mlp"]]:
    """Keys by layer of 16 tokens of `probe`, in float32."""
    names = {layer: host.key_name(layer) for layer in layers}
    read = activations(model, tokens.pad(model, [probe(model, LENGTH)]), list(names.values()))
    return {layer: at_least_float32(read[name][0]).to("cpu", torch.float32) for layer, name in names.items()}


def distance(one: Float[Tensor, "pos d_mlp"], other: Float[Tensor, "pos d_mlp"]) -> float:
    """Root mean square distance of the keys, each made of length 1: 0 for the same, about 1.4 for unrelated ones."""
    rows = [torch.nn.functional.normalize(keys.double(), dim=-1) for keys in (one, other)]
    return float(length(rows[0] - rows[1]) / len(one) ** 0.5)
