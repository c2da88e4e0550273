"""`SecondMoments`: second moments by layer, in memory or in a folder."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tl_edit import host, show
from tl_edit.host import Model
from tl_edit.moment import files
from tl_edit.moment.checks import check_ridge
from tl_edit.moment.result import SecondMoment
from tl_edit.moment.spectrum import plot_spectra

PATTERN = "layer-*.safetensors"
"""The files in a folder."""


class SecondMoments(Mapping[int, SecondMoment]):
    """Second moments by layer: ``moments[17].matrix``."""

    def __init__(self, by_layer: Iterable[SecondMoment]) -> None:
        self._by_layer: dict[int, SecondMoment | Path] = {moment.layer: moment for moment in by_layer}
        self._ridge: float | None = None
        self._in_use: weakref.WeakValueDictionary[int, SecondMoment] = weakref.WeakValueDictionary()

    def __getitem__(self, layer: int) -> SecondMoment:
        try:
            found = self._by_layer[layer]
        except KeyError:
            raise KeyError(
                f"no second moment for layer {layer}; these are for layers {list(self._by_layer)}; compute it with "
                f"second_moment(model, texts, layers=[{layer}])"
            ) from None
        if isinstance(found, SecondMoment):
            return found
        moment = self._in_use.get(layer)
        if moment is None:
            moment = SecondMoment.load(found)
            if self._ridge is not None and self._ridge != moment.ridge:
                moment = moment.with_ridge(self._ridge)
            self._in_use[layer] = moment
        return moment

    def __contains__(self, layer: object) -> bool:
        return layer in self._by_layer

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_layer)

    def __len__(self) -> int:
        return len(self._by_layer)

    def __repr__(self) -> str:
        said = (
            repr(found) if isinstance(found, SecondMoment) else f"layer {layer} in {found}"
            for layer, found in self._by_layer.items()
        )
        return f"SecondMoments({', '.join(said)})"

    def plot(self, ax: Any = None) -> Any:
        """The eigenvalues of all layers, of more than six with a scale of colours; see `SecondMoment.plot`.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return plot_spectra([self[layer] for layer in self], ax)

    def _repr_html_(self) -> str:
        """A small table; files are not read for it."""
        rows = [
            (str(layer), repr(found) if isinstance(found, SecondMoment) else f"in {found}, read when it is asked for")
            for layer, found in self._by_layer.items()
        ]
        return show.table(rows, columns=("layer", "second moment"))

    @classmethod
    def identity(cls, model: Model, layers: Sequence[int]) -> "SecondMoments":
        """``C = I``: the control that pretends all key directions are equally common.

        (Some re-implementations of ROME use it as their default; ``mom2_adjustment: false``.)
        """
        host.check_layers(model, layers, "SecondMoments.identity")
        widths = {layer: host.w_out(model, layer).shape[0] for layer in layers}
        return cls(
            SecondMoment(layer=layer, matrix=torch.eye(d_mlp, dtype=torch.float64), count=0)
            for layer, d_mlp in widths.items()
        )

    def with_ridge(self, ridge: float) -> "SecondMoments":
        """The same measurements, solved with another ridge; those in a folder get it when they are asked for.

        Raises:
            ValueError: If the ridge is not a number of 0 or more.
        """
        check_ridge(ridge, "SecondMoments.with_ridge")
        moments = SecondMoments([])
        moments._ridge = ridge
        moments._by_layer = {
            layer: found.with_ridge(ridge) if isinstance(found, SecondMoment) else found
            for layer, found in self._by_layer.items()
        }
        return moments

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None, with_factor: bool = False) -> None:
        """Write one file per layer, ``layer-17.safetensors``; see `SecondMoment.save`.

        Raises:
            ValueError: If a file cannot be written, or the folder holds files of other layers, which would be taken for
                those of this run.
        """
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"SecondMoments.save: the folder {path} cannot be made ({error}); expected a path in a folder where "
                "you may write; choose another."
            ) from error
        others = sorted({file.name for file in path.glob(PATTERN)} - {f"layer-{layer}.safetensors" for layer in self})
        if others:
            raise ValueError(
                f"SecondMoments.save: {path} holds {others[0]}, of another run; expected a folder with files of layers "
                f"{list(self)} only; choose another folder."
            )
        for layer in self:
            self[layer].save(path / f"layer-{layer}.safetensors", dtype=dtype, with_factor=with_factor)

    @classmethod
    def load(cls, folder: str | Path) -> "SecondMoments":
        """The moments that `save` wrote, each read when it is asked for and not kept.

        So five layers of width 16384, 2.1 GB each and as much again with their factors, need not be in memory
        together. To solve several times with one, keep it: ``moment = moments[17]``.

        Raises:
            ValueError: If there are no such files, or one is damaged (its numbers are looked at when it is read).
        """
        path = Path(folder)
        found: dict[int, Path] = {}
        for file in sorted(path.glob(PATTERN)):
            layer = files.read_layer(file)
            if layer in found:
                raise ValueError(
                    f"SecondMoments.load: {found[layer]} and {file.name} are both of layer {layer}; expected one file "
                    "for each layer; remove one of them."
                )
            found[layer] = file
        if not found:
            raise ValueError(
                f"SecondMoments.load: {path} holds no files layer-*.safetensors; expected a folder that "
                "SecondMoments.save wrote; for a single file use SecondMoment.load."
            )
        moments = cls([])
        moments._by_layer = dict(sorted(found.items()))
        return moments
