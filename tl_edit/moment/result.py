"""`SecondMoment`: what was measured at one layer, solved with and never inverted."""

import math
import warnings
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import archive, host, show
from tl_edit.attach import foreign_hook
from tl_edit.counted import counted
from tl_edit.edit import edits_on
from tl_edit.host import Model, Provenance
from tl_edit.moment import files, fingerprint
from tl_edit.moment.checks import check_matrix, check_ridge, with_ridge
from tl_edit.moment.convergence import Convergence, condition_number, split_half_cosines
from tl_edit.moment.spectrum import plot_spectra, told


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SecondMoment:
    """``C = E[k k^T]`` of one layer's keys, in float64 (8 ``d_mlp``^2 bytes: 2.1 GB at a width of 16384).

    Raises:
        ValueError: If the matrix is not square, the count below 0, or the ridge not a number of 0 or more.
    """

    layer: int
    matrix: Float[Tensor, "d_mlp d_mlp"]
    """As measured, without the ridge."""
    count: int
    """Number of tokens the mean runs over; 0 for the identity."""
    provenance: Provenance | None = None
    corpus: str = ""
    """What the texts were, in words."""
    ridge: float = 0.0
    """So many times the mean of the diagonal is added to the diagonal when solving."""
    counts_bos: bool = True
    """Whether keys at a BOS that begins a text count."""
    sample_keys: Float[Tensor, "key d_mlp"] | None = None
    """Some 64 of the keys, drawn evenly, to judge the moment by."""
    probe_keys: Float[Tensor, "pos d_mlp"] | None = None
    """The model's keys for one fixed sequence of tokens, by which `check_fits` knows it; see `fingerprint`."""
    half_matrix: Float[Tensor, "d_mlp d_mlp"] | None = None
    """The second moment of one half of the texts, where it was asked for."""
    half_count: int = 0
    """Tokens in that half."""
    settings: dict[str, Any] | None = None
    """How it was measured: ``max_tokens``, ``max_length``, ``seed``, ``batch_tokens``, ``split_halves``, ``count_bos``,
    ``prepend_bos``; ``edits``, those of tl_edit that the model carried, and ``hooks``, where a hook of yours was (""
    for none), as both change keys. None where it is not known, as in older files."""

    def __post_init__(self) -> None:
        """Refuse what is no square matrix, a count below 0, and a ridge that is none."""
        check_ridge(self.ridge, "SecondMoment")
        if not isinstance(cast(object, self.matrix), Tensor) or self.matrix.ndim != 2 or len({*self.matrix.shape}) != 1:
            raise ValueError(
                f"SecondMoment: matrix is of shape {list(getattr(self.matrix, 'shape', []))}; expected a tensor "
                "[d_mlp d_mlp]; pass the mean of k k^T."
            )
        if self.count < 0:
            raise ValueError(f"SecondMoment: count is {self.count}; expected 0 or more; pass the number of tokens.")

    def __repr__(self) -> str:
        what = counted(self.count, "token") if self.count else "identity"
        what += "" if self.counts_bos or not self.count else " without BOS"
        what += f" of {self.corpus}" if self.corpus else ""
        what += f", ridge {self.ridge:g}" if self.ridge else ""
        return f"SecondMoment(layer {self.layer}, d_mlp {self.d_mlp}, {what})"

    @property
    def d_mlp(self) -> int:
        """Width of the keys."""
        return self.matrix.shape[0]

    @property
    def added(self) -> float:
        """What the ridge adds to the diagonal: ``ridge * trace(C) / d_mlp``."""
        return self.ridge * float(self.matrix.diagonal().double().mean()) if self.ridge else 0.0

    # --- solving -----------------------------------------------------------------------------------

    @cached_property
    def cholesky(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """Lower Cholesky factor of `matrix` with its ridge in float64, computed once.

        It takes as many bytes as the matrix, and while it is computed twice that.

        Raises:
            ValueError: If the matrix is singular: too few tokens for ``d_mlp`` dimensions, or neurons that never fired.
        """
        regular = with_ridge(self.matrix.double(), self.added)
        factor, info = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(regular))
        if info.item() or not torch.isfinite(factor).all():
            raise ValueError(
                f"solving with the second moment of layer {self.layer}: it is singular after "
                f"{counted(self.count, 'token')}; expected a positive definite {self.d_mlp} x {self.d_mlp} "
                f"matrix{self._remedy()}"
            )
        return factor

    def _remedy(self) -> str:
        """What a singular matrix lacks: tokens, or neurons that fire, which no number of tokens may give."""
        ridge = "or solve with a ridge, e.g. moment.with_ridge(1e-3)"
        missing = self.d_mlp - self.count
        if missing > 0:
            return (
                f", for which at least {missing:,} more tokens are needed and about {10 * self.d_mlp:,} in all are "
                f"advisable; call second_moment(...) with more texts or a larger max_tokens, {ridge}."
            )
        dead = int((self.matrix.diagonal() == 0).sum())
        if dead:
            return (
                f"; {dead:,} of the neurons never fired, as happens in models with ReLU; choose a layer without such "
                f"neurons, try more varied texts, use the control SecondMoments.identity(model, [{self.layer}]), "
                f"{ridge}."
            )
        return (
            f"; about {10 * self.d_mlp:,} tokens are advisable; call second_moment(...) with more varied texts, "
            f"{ridge}."
        )

    def solve(self, rhs: Float[Tensor, "d_mlp n"]) -> Float[Tensor, "d_mlp n"]:
        """``C^-1 rhs`` in float64, with the ridge, by the Cholesky factor, on the device of the matrix.

        Raises:
            ValueError: If the matrix is singular or ``rhs`` has another width.
        """
        check_matrix(rhs, "SecondMoment.solve: the right-hand side", 0, self.d_mlp, "keys as columns, e.g. keys.T")
        return torch.cholesky_solve(rhs.to(self.cholesky), self.cholesky)

    def with_ridge(self, ridge: float) -> "SecondMoment":
        """The same measurement, solved with another ridge; it shares the matrix."""
        return replace(self, ridge=ridge)

    def to(self, device: str | torch.device) -> "SecondMoment":
        """The moment with its matrix, and its factor if it is there, on another device, where solving happens then.

        The device must have float64. It takes 8 ``d_mlp``^2 bytes there for each of the two (2.1 GB at a width of
        16384), and 8 more while the factor is computed. The half for `convergence` stays where it is.
        """
        moved = replace(self, matrix=self.matrix.to(device))
        if "cholesky" in vars(self):
            vars(moved)["cholesky"] = self.cholesky.to(device)
        return moved

    # --- judging -----------------------------------------------------------------------------------

    @cached_property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue, with the ridge, to about a per cent; computed once, with the factor.

        Products are in float32, so of values far above 1e7 only the size is meant.

        Raises:
            ValueError: If the matrix is singular.
        """
        return condition_number(self.matrix.double(), self.added, self.cholesky)

    def convergence(self, keys: Float[Tensor, "key d_mlp"] | None = None) -> Convergence:
        """Whether the tokens were enough, by how far two halves of them agree on ``C^-1 k``.

        With halves it takes at its peak about 8.5 times the bytes of the matrix (18 GB at a width of 16384).

        Args:
            keys: Keys to ask for, e.g. those of your requests (``extract_keys_values(...).keys[layer]``); None for
                ``sample_keys``.

        Raises:
            ValueError: If the keys have another width.
        """
        asked = self.sample_keys if keys is None else keys
        if asked is not None:
            example = f"e.g. extract_keys_values(...).keys[{self.layer}]"
            check_matrix(asked, "SecondMoment.convergence: what is asked for", 1, self.d_mlp, example)
        try:
            condition = self.condition_number
        except ValueError:
            condition = math.inf
        cosines, advice = self._cosines(asked)
        return Convergence(
            layer=self.layer,
            count=self.count,
            d_mlp=self.d_mlp,
            ridge=self.ridge,
            condition_number=condition,
            cosine_mean=None if cosines is None else float(cosines.mean()),
            cosine_lowest=None if cosines is None else float(cosines.min()),
            n_keys=0 if asked is None else len(asked),
            cosines=() if cosines is None else tuple(map(float, cosines)),
            advice=advice,
        )

    def _cosines(self, keys: Tensor | None) -> tuple[Tensor | None, str]:
        """Cosines of the two halves' directions; or why there are none."""
        if self.half_matrix is None:
            return None, "there are no halves; call second_moment(..., split_halves=True)."
        if keys is None or not len(keys):
            return None, "there are no keys; pass some."
        rest = self.count - self.half_count
        singular = "a half of the tokens alone is singular; take more tokens, or a ridge."
        if min(rest, self.half_count) < (1 if self.ridge else self.d_mlp):
            return None, singular
        other = (self.matrix.cpu() * self.count - self.half_matrix * self.half_count) / rest
        halves = (with_ridge(self.half_matrix, self.added), with_ridge(other, self.added))
        found = split_half_cosines(halves, keys)
        return found, "" if found is not None else singular

    def check_fits(self, model: Model, operation: str) -> None:
        """Refuse a model whose keys at this layer have another width, or are not those that were measured.

        Whether they are is asked by a pass of 16 tokens (`fingerprint`); of a model with edits of tl_edit or with hooks
        on it, which change keys, and for moments without ``probe_keys``, width and name are all that is compared.

        Raises:
            ValueError: naming what differs and the call that computes the right one.
        """
        remedy = f"compute it with second_moment(model, texts, layers=[{self.layer}])."
        host.check_layers(model, [self.layer], operation)
        d_mlp = host.w_out(model, self.layer).shape[0]
        if d_mlp != self.d_mlp:
            raise ValueError(
                f"{operation}: the moment is for layer {self.layer} with d_mlp {self.d_mlp}; "
                f"{host.model_name(model)}'s layer {self.layer} has d_mlp {d_mlp}; {remedy}"
            )
        made_on = self.provenance
        if made_on is not None and _bare_name(made_on.model_name) != _bare_name(host.model_name(model)):
            raise ValueError(
                f"{operation}: the moment of layer {self.layer} was computed on {made_on.model_name}; this model is "
                f"{host.model_name(model)}; {remedy}"
            )
        if self.probe_keys is None or foreign_hook(model) or edits_on(model, operation):
            return
        found = fingerprint.probe_keys(model, [self.layer])[self.layer]
        distance = fingerprint.distance(found, self.probe_keys)
        if math.isnan(distance):
            raise ValueError(
                f"{operation}: {host.model_name(model)}'s keys at layer {self.layer} are not finite; expected numbers; "
                "look for weights that are not finite, or load the model in float32 or bfloat16 (float16 overflows on "
                "some models)."
            )
        if distance < fingerprint.DOUBTED:
            return
        said = (
            f"{operation}: the moment of layer {self.layer} was computed on a model with other keys: those of a fixed "
            f"text are {distance:.2f} away from this model's, in units of their length; expected the same model "
            f"(below {fingerprint.DOUBTED}, also in half precision)"
        )
        if distance >= fingerprint.REFUSED:
            raise ValueError(f"{said}; {remedy}")
        warnings.warn(f"{said}; if this is not a related model, {remedy}", stacklevel=2)

    # --- showing -----------------------------------------------------------------------------------

    @cached_property
    def eigenvalues(self) -> Float[Tensor, " d_mlp"]:
        """Of `matrix` without the ridge, from the largest; computed once (minutes at a width of 16384)."""
        return cast(Tensor, torch.linalg.eigvalsh(self.matrix.double())).flip(0).cpu()

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues of `matrix` from the largest, on a logarithmic scale, and what the ridge adds to each.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return plot_spectra([self], ax)

    def _repr_html_(self) -> str:
        """A small table; nothing is computed for it."""
        return show.table(told(self))

    # --- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None, with_factor: bool = False) -> None:
        """Write to a safetensors file; no pickle. `load` gives an equal moment back.

        Args:
            path: The file.
            dtype: Of the matrices in the file; None for float64. float32 takes half the space and is as exact as the
                products, but the sums' last digits are lost: the factor of an ill-conditioned matrix may fail then.
            with_factor: Whether to keep the Cholesky factor too (8 ``d_mlp``^2 bytes), so that it need not be computed
                again.

        Raises:
            ValueError: If the file cannot be written, or the factor of a singular matrix is asked for.
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"SecondMoment.save: dtype is {dtype}; expected torch.float32, torch.float64 or None.")
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Tensor] = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        plain["provenance"] = None if self.provenance is None else asdict(self.provenance)
        for name in {"matrix", "half_matrix"} & tensors.keys():
            tensors[name] = tensors[name].to(dtype or torch.float64)
        if with_factor:
            tensors["cholesky"] = self.cholesky
        archive.write(path, files.KIND, tensors, plain)

    @classmethod
    def load(cls, path: str | Path) -> "SecondMoment":
        """Read what `save` wrote, onto the CPU, in float64.

        Raises:
            ValueError: If the file is not such a one, or is damaged.
        """
        tensors, plain = archive.read(path, files.KIND)
        factor = tensors.pop("cholesky", None)
        for name in {"matrix", "half_matrix"} & tensors.keys():
            tensors[name] = tensors[name].double()
        made_on = plain.pop("provenance", None)
        try:
            made = None if made_on is None else Provenance(**made_on)
            moment = cls(**cast(Any, plain | tensors), provenance=made)
        except TypeError as error:
            raise ValueError(
                f"SecondMoment.load: {path} has other fields ({error}); expected a file written by SecondMoment.save "
                "of this version; compute the moment again."
            ) from error
        if factor is not None:
            vars(moment)["cholesky"] = factor
        return moment

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        layer: int,
        *,
        model: Model | None = None,
        corpus: str = "",
        ridge: float = 0.0,
        counts_bos: bool = False,
    ) -> "SecondMoment":
        """Read a file of the published ROME and MEMIT programs, such as those they offer for download.

        Keys do not change under TransformerLens' weight processing, so that the files fit processed models too. They
        were collected on texts without a BOS, which TransformerLens prepends to prompts by default: the key at a BOS is
        not in them, and what an edit does to it is not held back. Edit with ``prepend_bos=False``, as the published
        numbers were made.

        Args:
            path: The file; its name says which model and layer it is for, its content does not.
            layer: The layer it is for, counted from 0, as in the file's name.
            model: The model it is for: its width is compared, and its BOS habit warned of.
            corpus: A note of what the texts were.
            ridge: See `SecondMoment.ridge`.
            counts_bos: Whether keys at a BOS are in it, as they may be in a file that `to_npz` wrote; it does not say.

        Raises:
            ValueError: If the file is not of that layout, holds what cannot be a second moment, or does not fit the
                model.
        """
        if type(layer) is not int or layer < 0:
            raise ValueError(f"SecondMoment.from_npz: layer is {layer!r}; expected 0 or more, as in the file's name.")
        files.warn_of_name(Path(path), layer)
        found = files.read_npz(Path(path))
        moment = cls(
            layer=layer,
            matrix=found.matrix,
            count=found.n_tokens,
            corpus=corpus,
            ridge=ridge,
            counts_bos=counts_bos,
        )
        if model is not None:
            moment.check_fits(model, "SecondMoment.from_npz")
            if getattr(model.cfg, "default_prepend_bos", True) and not counts_bos:
                warnings.warn(
                    f"SecondMoment.from_npz: {host.model_name(model)} begins prompts with a BOS, and released files "
                    "were collected without; expected the same for both; edit with prepend_bos=False, or compute the "
                    f"moment with second_moment(model, texts, layers=[{layer}]).",
                    stacklevel=2,
                )
        return moment

    def to_npz(self, path: str | Path, *, sample_size: int | None = None) -> None:
        """Write a file that the published ROME and MEMIT programs read: a sum, in float32, without the ridge.

        The file does not say whether keys at a BOS count; if they do, a `UserWarning` says so.

        Args:
            path: The file. The programs look for it under a name of theirs, e.g.
                ``data/stats/gpt2-xl/wikipedia_stats/transformer.h.17.mlp.c_proj_float32_mom2_100000.npz``.
            sample_size: Number of documents; the programs compare it with their ``mom2_n_samples``.

        Raises:
            ValueError: For the identity, which has no count, or if the file cannot be written.
        """
        if self.count < 1:
            raise ValueError(
                f"SecondMoment.to_npz: {self!r} is of 0 tokens; expected a measured moment, since the file holds a sum "
                "and a count; the programs' own switch for the identity is mom2_adjustment: false."
            )
        if sample_size is not None and type(sample_size) is not int:
            raise ValueError(f"SecondMoment.to_npz: sample_size is {sample_size!r}; expected an integer or None.")
        if self.counts_bos and (self.provenance is None or self.provenance.prepend_bos):
            warnings.warn(
                f"SecondMoment.to_npz: {self!r} counts keys at a BOS, which the file does not say; the published files "
                "have none; measure with prepend_bos=False, or read it with from_npz(..., counts_bos=True).",
                stacklevel=2,
            )
        files.write_npz(Path(path), self.matrix, self.count, sample_size)


def _bare_name(name: str) -> str:
    """A model's name without its organisation, which only one of the two interfaces keeps."""
    return name.split("/")[-1].lower()
