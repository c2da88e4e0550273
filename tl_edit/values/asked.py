"""What a search is asked to do, checked before anything is computed."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from tl_edit import host, tokens
from tl_edit.host import Model
from tl_edit.request import EditRequest, as_prefixes
from tl_edit.values.settings import Site, ValueSearch

EngineName = Literal["auto", "plain"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of `optimize_values` in their plain form; made by `checked`."""

    operation: str
    model: Model
    requests: tuple[EditRequest, ...]
    layer: int
    sites: tuple[Site, ...]
    prefixes: tuple[str, ...]
    settings: ValueSearch
    prepend_bos: bool
    engine: EngineName
    max_rows: int
    folder: Path | None

    @classmethod
    def checked(
        cls,
        operation: str,
        model: Model,
        requests: tuple[EditRequest, ...],
        layer: int,
        *,
        site: object,
        prefixes: object,
        search: object,
        prepend_bos: bool | None,
        engine: object,
        max_rows: object = None,
        folder: object = None,
    ) -> "Asked":
        """See `optimize_values` for what they mean.

        Raises:
            ValueError: For what cannot work, or what this model does not have.
        """
        host.check_ready(model, operation)
        host.check_layers(model, [layer], operation)
        if search is not None and not isinstance(search, ValueSearch):
            raise ValueError(
                f"{operation}: search is of type {type(search).__name__}; expected ValueSearch; write "
                "ValueSearch(v_lr=...)."
            )
        if engine not in get_args(EngineName):
            raise ValueError(f"{operation}: engine is {engine!r}; expected one of {', '.join(get_args(EngineName))}.")
        if max_rows is not None and (type(max_rows) is not int or max_rows < 1):
            raise ValueError(
                f"{operation}: max_rows is {max_rows!r}; expected an integer of 1 or more positions; leave it out for "
                "the default."
            )
        if folder is not None and not isinstance(folder, str | Path):
            raise ValueError(f"{operation}: folder is {folder!r}; expected a path, or None to keep nothing.")
        return cls(
            operation=operation,
            model=model,
            requests=requests,
            layer=layer,
            sites=_sites(site, operation),
            prefixes=as_prefixes(prefixes, operation),
            settings=search or ValueSearch(),
            prepend_bos=tokens.resolve_bos(model, prepend_bos),
            engine=cast(EngineName, engine),
            max_rows=_affordable(model, layer) if max_rows is None else max_rows,
            folder=None if folder is None else Path(folder),
        )


def _affordable(model: Model, layer: int) -> int:
    """Positions whose activations take about 2 GiB; no more than bring speed."""
    weight = host.w_out(model, layer)
    numbers = 34 * weight.shape[1] * max(1, host.n_layers(model) - layer - 1)
    return max(1, min(2048, 2**31 // (numbers * weight.element_size())))


def _sites(site: object, operation: str) -> tuple[Site, ...]:
    listed: tuple[object, ...] = (site,)
    if isinstance(site, Iterable) and not isinstance(site, str):
        listed = tuple(cast(Iterable[object], site))
    known = get_args(Site)
    if not listed or any(each not in known for each in listed) or len(set(listed)) < len(listed):
        raise ValueError(
            f"{operation}: site is {site!r}; expected one of {', '.join(known)}, or several different ones; ROME's v* "
            'is at "value", MEMIT\'s z* at "resid_post".'
        )
    return cast(tuple[Site, ...], listed)
