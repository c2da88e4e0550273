"""An edit: low-rank changes of ``W_out``, and their life on a model.

`Edit` is what every method returns. It is a value (factors, requests, settings, where it came from), apart
from the model; `Edit.apply` writes it into ``W_out`` in place and `Edit.undo` takes it back **bit for bit**:
the weights before the first edit of a layer are kept (one copy of ``W_out`` per edited layer, on its device),
and undoing writes this base plus the edits that remain, in their order. Nothing is ever subtracted
(`tl_edit.edit.ledger`). `Edit.hooks` adds the same without touching a weight.
"""

import reprlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from tl_edit import host, tokens
from tl_edit.edit.as_hooks import Rows, Where, named_hooks, scales_of
from tl_edit.edit.base import Base
from tl_edit.edit.collateral import Collateral, collateral
from tl_edit.edit.ledger import Settled, ledger_of
from tl_edit.edit.low_rank import Change, LowRank, as_deltas, as_scale
from tl_edit.edit.value import EditValue
from tl_edit.host import Model, NamedHook
from tl_edit.request import EditRequest, as_requests

ALLOWED = "pass allow_mismatch=True"
AS_HOOKS = "pass hooks=edit.hooks(model, allow_mismatch=True) in its place"
"""What to do if other weights are meant, where an operation has this argument, and where it takes hooks."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edit(EditValue):
    """A computed edit: apply it, undo it, switch it on for a while, use it as hooks, keep it in a file.

    ``edit * 0.5``, ``-edit``, ``a + b``, ``a - b`` and ``sum(edits)`` are edits too, with the change that the algebra
    of the weights gives, and without diagnostics, as those are of the edit that was computed.

    Raises:
        ValueError: If a factor is not finite, or factors do not fit each other.
    """

    @classmethod
    def of(
        cls,
        model: Model,
        deltas: Mapping[int, LowRank],
        *,
        method: str,
        requests: EditRequest | Sequence[EditRequest] = (),
        config: Any = None,
        prepend_bos: bool | None = None,
        seed: int | None = None,
        diagnostics: Mapping[str, Any] | None = None,
        statistics: Mapping[int, str] | None = None,
    ) -> "Edit":
        """Changes of your own as an edit of ``model``, not applied yet; all methods make theirs so.

        Args:
            model: The model they were computed on. Its weights before all edits are remembered by their hashes.
            deltas: By layer: the change of ``W_out``, e.g. ``{5: rome_update(...)}``.
            method: What computed them.
            requests: The facts they write, if they write any.
            config: The settings, if any.
            prepend_bos: Whether prompts began with a BOS; None for the model's own default.
            seed: The seed of what was random.
            diagnostics: Numbers about it.
            statistics: By layer: a note of the second moment that was used.

        Raises:
            ValueError: If there are no changes, or they do not fit the model.
        """
        operation = f"making an edit ({method})"
        host.interface(model)
        change = Change(method=method, deltas=as_deltas(deltas, operation))
        _check_shapes(model, change, operation, host.model_name(model))
        bos = tokens.resolve_bos(model, prepend_bos) if model.tokenizer is not None else bool(prepend_bos)
        return cls(
            method=method,
            deltas=change.deltas,
            requests=as_requests(requests, operation) if requests else (),
            config=config,
            provenance=host.provenance(model, prepend_bos=bos, seed=seed),
            diagnostics=diagnostics or {},
            base=Base.of(model, tuple(change.deltas)),
            statistics=statistics or {},
        )

    # --- on a model --------------------------------------------------------------------------------

    def apply(self, model: Model, *, allow_mismatch: bool = False) -> "Edit":
        """Write the edit into ``W_out`` in place; returns itself.

        The sum is formed in float64 and rounded once to the dtype of the weights. Edits on one layer are summed in
        their order, each rounded once.

        Args:
            model: A model with the weights that the edit was computed on (other edits on top do not matter), in the
                same dtype or cast.
            allow_mismatch: Whether other weights are meant: another processing, a fine-tuned model.

        Raises:
            ValueError: If it is applied already, was computed on other weights, does not fit the model, would give
                weights that are not finite, or if the weights of an edited layer were changed from outside. Nothing is
                written then.
        """
        operation = "applying an edit"
        _check_flag(allow_mismatch, operation)
        now = self._settled(model, operation)
        if self in now.changes:
            raise ValueError(
                f"applying {self!r}: it is applied to this model already; expected each edit once; undo it first, "
                "or, for twice the change, apply edit * 2."
            )
        if not allow_mismatch:
            self._check_base(model, now, operation)
        ledger_of(model).append(model, now, self)
        return self

    def undo(self, model: Model) -> "Edit":
        """Take the edit back, bit for bit, also from among others; returns itself.

        Raises:
            ValueError: If it is not applied to this model, or if the weights of its layers were changed from
                outside since (they are never overwritten). Nothing is written then.
        """
        ledger = ledger_of(model)
        now = ledger.settle(model)
        if self not in now.changes:
            now.check_untouched(tuple(self.deltas), f"undoing {self!r}")
            raise ValueError(
                f"undoing {self!r}: it is not applied to this model; applied are {reprlib.repr(now.changes)}; "
                "undo it on the model that it was applied to."
            )
        now.check_untouched(tuple(self.deltas), "undoing an edit")
        ledger.rewrite(model, now, [edit for edit in now.changes if edit != self], self.deltas)
        return self

    @contextmanager
    def on(self, model: Model, *, allow_mismatch: bool = False) -> Generator["Edit", None, None]:
        """Switch the edit on inside a ``with`` block; it is undone at the end, also after an exception.

        Blocks may be nested and may end in any order.

        Args:
            model: As for `apply`.
            allow_mismatch: As for `apply`.

        Raises:
            ValueError: What `apply` and `undo` raise. After an exception in the block, that one goes on, with a note if
                the edit could not be undone.
        """
        before = self._is_listed(model)
        ending = False
        try:
            self.apply(model, allow_mismatch=allow_mismatch)
            yield self
            ending = True
            self.undo(model)
        except BaseException as error:
            refused = ending and isinstance(error, ValueError)
            if not before and not refused and self._is_listed(model):
                try:
                    self.undo(model)
                except ValueError as stuck:
                    # Python 3.10 has no notes.
                    getattr(error, "add_note", warnings.warn)(str(stuck))
            raise

    def is_applied(self, model: Model) -> bool:
        """Whether this edit (or a copy of it) is written into ``model``; the weights themselves are looked at.

        Raises:
            ValueError: If the weights of its layers were changed from outside since tl_edit wrote them.
        """
        now = ledger_of(model).settle(model)
        now.check_untouched(tuple(self.deltas), "asking whether an edit is applied")
        return self in now.changes

    def _is_listed(self, model: Model) -> bool:
        """As last written, without a look at the weights."""
        return self in ledger_of(model).changes

    def check_fits(
        self,
        model: Model,
        operation: str,
        *,
        hooks: Sequence[NamedHook] = (),
        allow_mismatch: bool = False,
        otherwise: str = ALLOWED,
    ) -> bool:
        """Refuse a model that the edit does not fit, as `apply` does, for an operation that is given both.

        Args:
            model: The model.
            operation: What the user called, for errors.
            hooks: What the operation switches on beside the edit.
            allow_mismatch: As for `apply`.
            otherwise: What to do there if other weights are meant, for errors.

        Returns:
            Whether it is applied already.

        Raises:
            ValueError: If it does not fit, the weights of its layers were changed from outside, or its own hooks are
                among the others.
        """
        _check_flag(allow_mismatch, operation)
        now = self._settled(model, operation)
        if not allow_mismatch and self not in now.changes:
            self._check_base(model, now, operation, otherwise)
        if scales_of(self, hooks):
            raise ValueError(
                f"{operation}: hooks has those of {self!r}, which is given as edit, too, and would be added twice; "
                "expected it once; leave one of them out, or, for twice the change, pass edit=edit * 2."
            )
        return self in now.changes

    def _settled(self, model: Model, operation: str) -> Settled:
        """What is on a model that has the edit's layers, which nobody changed from outside."""
        _check_shapes(model, self, operation, self.provenance.model_name)
        now = ledger_of(model).settle(model)
        now.check_untouched(tuple(self.deltas), operation)
        return now

    def _check_base(self, model: Model, now: Settled, operation: str, otherwise: str = ALLOWED) -> None:
        """Refuse a model with other weights than the edit was computed on.

        Raises:
            ValueError: naming the difference.
        """
        if self.base is None:
            return
        difference = self.base.difference(model, self.provenance, now.bases)
        if difference is not None:
            raise ValueError(
                f"{operation}: {self!r} was computed {difference}; expected the weights it was computed on; load the "
                f"model as it was then, compute the edit on this one, or {otherwise} if this is meant."
            )

    # --- as hooks ----------------------------------------------------------------------------------

    def hooks(
        self,
        model: Model | None = None,
        *,
        scale: float | int = 1.0,
        positions: Where = None,
        rows: Rows = None,
        allow_mismatch: bool = False,
    ) -> list[NamedHook]:
        """The edit as hooks: ``scale * (key @ left) @ right`` is added where the MLP answers; no weight is touched.

        They go where your own hooks go: ``model.run_with_hooks(tokens, fwd_hooks=edit.hooks() + mine)``, ``with
        model.hooks(fwd_hooks=edit.hooks()): causal_trace(...)``. Pass them all, and only once. Before or behind yours
        is the same, unless both are at one hook point, where the first acts first: put those of yours that change keys
        (``mlp.hook_post``) before, and those that change or read the MLP's output (``hook_mlp_out``) behind, to see
        what the edited weights would do.
        Where the MLP's output is normalised (Gemma 2 and 3) the change comes before the norm, as that of the weights.
        Positions and rows are those of each pass. With a key/value cache, as in ``generate``, a pass has the new tokens
        only; `evaluate` and `causal_trace` make batches of their own, where rows mean nothing to you. While the hooks
        are on a model that normalises, the norm's ``hook_scale`` shows the unedited divisor.

        Args:
            model: The model they are for; None for one like that on which the edit was computed. HookedTransformer and
                TransformerBridge have different hook points.
            scale: How much of the edit; negative takes away.
            positions: Where in the sequence: one position, a slice, a list of positions, or a mask ``[pos]`` or
                ``[batch pos]``; None for everywhere. BOS and padding count.
            rows: In which rows of the batch: one, a slice, a list, or a mask ``[batch]``; None for all.
            allow_mismatch: Whether ``model`` may have other weights than the edit was computed on.

        Raises:
            ValueError: If the scale is no finite number, or it is not known which hook points to use; and when run, for
                positions and rows outside the batch, or a model of another width.
        """
        operation = "Edit.hooks"
        _check_flag(allow_mismatch, operation)
        number = as_scale(scale, operation)
        if model is not None:
            _check_shapes(model, self, operation, self.provenance.model_name)
            now = ledger_of(model).settle(model)
            if not allow_mismatch:
                self._check_base(model, now, operation)
            if number > 0 and self in now.changes:
                warnings.warn(
                    f"{operation}: {self!r} is applied to this model, and its hooks add it once more; expected it off; "
                    "undo it first, or take it away by hooks with scale=-1.",
                    stacklevel=2,
                )
            sites = {layer: host.value_site(model, layer) for layer in self.deltas}
        elif self.base is not None:
            sites = self.base.sites
        else:
            raise ValueError(
                f"{operation}: {self!r} does not know the model that it was computed on; expected one, as its hook "
                "points depend on it; write edit.hooks(model)."
            )
        return named_hooks(self.deltas, sites, scale=number, positions=positions, rows=rows, change=self)

    def collateral(
        self,
        model: Model,
        what: str | EditRequest | Sequence[str] | Sequence[EditRequest],
        *,
        prepend_bos: bool | None = None,
        batch_size: int = 64,
        allow_mismatch: bool = False,
    ) -> Collateral:
        """What the edit does elsewhere, before it is applied: how far it moves the MLP's answer at every token.

        The shift at a key is ``key @ left @ right``, exactly; of a rank-one edit its length is ``|left . key|
        |right|``. In an edit of several layers, keys are those of the model with the earlier layers' changes on. The
        model is left as it is; if the edit is applied already, the same is computed. Hooks that are on the model take
        part, so take off those of this edit.

        Args:
            model: The model to be edited, or edited with it already.
            what: Texts, to rank their tokens and the texts themselves; or requests, to rank their subjects, each at
                its last token.
            prepend_bos: Whether texts begin with a BOS; None for what the edit was computed with.
            batch_size: Rows per forward pass.
            allow_mismatch: Whether the model may have other weights than the edit was computed on.

        Returns:
            `Collateral`: ``shift`` ``[layer token]`` in the units of the MLP's output; ``top(n, by="token")`` or
            ``by="text"`` ranks, ``to_dataframe()`` has them all.

        Raises:
            ValueError: For nothing to look at, texts and requests mixed, active dropout, a model that does not fit.
        """
        operation = "Edit.collateral"
        host.check_ready(model, operation)
        applied = self.check_fits(model, operation, allow_mismatch=allow_mismatch)
        bos = tokens.resolve_bos(model, self.provenance.prepend_bos if prepend_bos is None else prepend_bos)
        hooks = [] if applied else self.hooks(model, allow_mismatch=True)
        return collateral(model, repr(self), self.deltas, what, hooks, prepend_bos=bos, batch_size=batch_size)


def _check_flag(allow_mismatch: object, operation: str) -> None:
    if type(allow_mismatch) is not bool:
        raise ValueError(
            f"{operation}: allow_mismatch is {allow_mismatch!r}; expected True or False; leave it out unless other "
            "weights than the edit was computed on are meant."
        )


def _check_shapes(model: Model, change: Change, operation: str, made_on: str) -> None:
    """Refuse a model that has not these layers in these sizes."""
    host.interface(model)
    host.check_layers(model, tuple(change.deltas), operation)
    for layer, delta in change.deltas.items():
        weight = host.w_out(model, layer)
        if delta.shape != tuple(weight.shape):
            raise ValueError(
                f"{operation}: its change of layer {layer} is {delta.shape[0]} x {delta.shape[1]}; W_out of "
                f"{host.model_name(model)} is {weight.shape[0]} x {weight.shape[1]}; use it on a model like the "
                f"one it was computed on ({made_on})."
            )


def applied_edits(model: Model) -> list[Edit]:
    """The edits that are written into ``model``, in the order in which they were applied; the weights are looked at.

    If the original weights were put back from outside, as loading the original state dict does, there are none; if
    those of an earlier state were, the edits of that state.

    Raises:
        ValueError: If the weights of an edited layer were changed from outside to something else.
    """
    return edits_on(model, "listing the applied edits")


def warn_of_twice(model: Model, hooks: Sequence[NamedHook], operation: str, *, stacklevel: int) -> None:
    """Warn of an applied edit that some hooks add once more."""
    for edit in cast(list[Edit], ledger_of(model).settle(model).changes):
        if any(scale > 0 for scale in scales_of(edit, hooks)):
            warnings.warn(
                f"{operation}: {edit!r} is applied to this model, and hooks adds it once more; expected it once; call "
                "edit.undo(model) first, or go on if this is meant.",
                stacklevel=stacklevel + 1,
            )
            return


def undo_edits(model: Model) -> list[Edit]:
    """Take back all edits at once, bit for bit; returns those that were on, in their order.

    Raises:
        ValueError: If the weights of an edited layer were changed from outside. Nothing is written then.
    """
    ledger = ledger_of(model)
    now = ledger.settle(model)
    layers = sorted({layer for edit in now.changes for layer in edit.deltas})
    now.check_untouched(layers, "undoing all edits")
    ledger.rewrite(model, now, [], layers)
    return list(now.changes)


def edits_on(model: Model, operation: str) -> list[Edit]:
    """`applied_edits` for another operation.

    Raises:
        ValueError: As `applied_edits`, naming ``operation``.
    """
    now = ledger_of(model).settle(model)
    now.check_untouched(tuple(now.unexplained), operation)
    return list(now.changes)
