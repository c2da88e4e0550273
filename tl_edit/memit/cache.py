"""What AlphaEdit remembers from one batch of edits to the next."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.counted import counted
from tl_edit.digest import digest
from tl_edit.memit.algebra import null_space
from tl_edit.moment import SecondMoment
from tl_edit.moment.fingerprint import DOUBTED, distance


class KeyCache:
    """The keys of the edits so far, which later edits shall not move; pass one object from call to call.

    It holds a ``d_mlp x d_mlp`` matrix for each layer, and the basis of its null space, which takes long to compute
    and is the same for every batch: up to ``16 * d_mlp^2`` bytes for each layer. It does not know of edits that are
    undone later: start anew then.
    """

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        self._grams: dict[int, Tensor] = {}
        self._bases: dict[str, Tensor] = {}
        self._probes: dict[int, Tensor] = {}
        self.n_requests = 0
        """Requests whose keys are in it."""

    def __repr__(self) -> str:
        return f"KeyCache({counted(self.n_requests, 'request')}, layers {sorted(self._grams)})"

    def gram(self, moment: SecondMoment, operation: str) -> Float[Tensor, "d_mlp d_mlp"] | None:
        """Sum of ``k k^T`` over the remembered keys of the moment's layer; None if there are none.

        Raises:
            ValueError: If they are another model's: of another width, or remembered beside another model's moment.
        """
        gram, probe = self._grams.get(moment.layer), self._probes.get(moment.layer)
        if gram is not None and len(gram) != moment.d_mlp:
            raise ValueError(
                f"{operation}: the cache holds keys of layer {moment.layer} with d_mlp {len(gram)}; this one has d_mlp "
                f"{moment.d_mlp}; pass a new KeyCache() for each model."
            )
        if probe is not None and moment.probe_keys is not None and distance(probe, moment.probe_keys) > DOUBTED:
            raise ValueError(
                f"{operation}: the cache holds keys of layer {moment.layer} of a model that computes other keys; "
                "expected those of the model that the moments are for; pass a new KeyCache() for each model."
            )
        return gram

    def basis(self, moment: SecondMoment, threshold: float, relative: bool) -> Float[Tensor, "d_mlp _"]:
        """The basis of the moment's null space, computed once; see `null_space`."""
        name = digest([f"{moment.layer} {threshold} {relative}", moment.matrix])
        if name not in self._bases:
            self._bases[name] = null_space(moment.matrix, threshold, relative=relative)
        return self._bases[name]

    def add(self, keys: Mapping[int, Float[Tensor, "request d_mlp"]], moments: Mapping[int, SecondMoment]) -> None:
        """Remember the keys of a batch, by layer, and which model's they are."""
        grams = {layer: rows.to(torch.float64).T @ rows.to(torch.float64) for layer, rows in keys.items()}
        for layer, gram in grams.items():
            self._grams[layer] = self._grams[layer] + gram if layer in self._grams else gram
            probe = moments[layer].probe_keys
            if probe is not None:
                self._probes[layer] = probe
        self.n_requests += max((len(rows) for rows in keys.values()), default=0)
