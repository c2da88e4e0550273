"""`evaluate`: ask the questions of records, and put the answers together."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

from tl_edit import host, tokens
from tl_edit.attach import as_hooks
from tl_edit.counted import counted
from tl_edit.data import EditRecord, as_records
from tl_edit.edit import AS_HOOKS, Edit, warn_of_twice
from tl_edit.evaluate.generation import Generation
from tl_edit.evaluate.judge import Judge, check_neighborhood
from tl_edit.evaluate.result import Evaluation
from tl_edit.evaluate.scores import RecordScores
from tl_edit.evaluate.texts import Drift, as_texts
from tl_edit.evaluate.writing import check_generate
from tl_edit.host import Model, NamedHook

OPERATION = "evaluate"


def evaluate(
    model: Model,
    records: EditRecord | Sequence[EditRecord],
    *,
    edit: Edit | None = None,
    hooks: Sequence[NamedHook] = (),
    distracted: bool = False,
    kl: bool = False,
    texts: str | Sequence[str] | None = None,
    generate: Generation | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = 128,
) -> Evaluation:
    """Score ``records`` on the model as it is, or with ``edit`` or ``hooks`` switched on for the duration.

    Args:
        model: A HookedTransformer or TransformerBridge.
        records: What to ask. Edits made one at a time are evaluated one at a time; join with `Evaluation.of`, or let
            `sweep` do it.
        edit: An edit to switch on; one that is applied already is left on.
        hooks: Hooks of your own for all passes, as (name, function) pairs, e.g. ``edit.hooks(model, scale=0.5)``. They
            see batches of prompts of one length, without padding, as hooks do that are on the model already; each
            prompt is followed by all tokens of an object but the last.
        distracted: Whether to ask the neighborhood's prompts a second time behind the edited statement (CounterFact+),
            where edits that leak show most.
        kl: Whether to measure how far the next token's distribution moves after the neighborhood's prompts, as
            KL(edited || unedited). It takes an edit or hooks to compare with the model without.
        texts: Texts whose perplexity is compared with that of the model without edit and hooks.
        generate: How to generate texts from the records' generation prompts, for their entropy (GE) and reference score
            (RS), e.g. ``Generation(tfidf=TfIdf.load(folder))``; None for none, as it takes long.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default, and then a warning if ``edit``
            was computed the other way.
        batch_size: Rows per forward pass, fewer where their logits would fill memory. What prompts begin with alike is
            computed once where the model allows, see `Evaluation.engine`; then it bounds the tokens of a pass, to those
            of so many of the longest rows.

    Raises:
        ValueError: For no records, targets that cannot be tokenised, hooks that are no pairs or have an unknown name,
            active dropout, probabilities that are not finite; for ``kl`` or ``texts`` with nothing to compare, or with
            an edit that is applied already; for ``generate`` where no record has generation prompts, or where the
            texts do not fit.
        ImportError: If texts are to be generated and nltk is not installed.
    """
    listed = as_records(records, OPERATION)
    ready = as_hooks(hooks, OPERATION)
    tokens.check_rows(batch_size, OPERATION, default=128)
    if edit is not None and not isinstance(cast(object, edit), Edit):
        raise ValueError(
            f"{OPERATION}: edit is of type {type(edit).__name__}; expected what rome_edit(...) returns, or None for "
            "the model as it is."
        )
    host.check_ready(model, OPERATION)
    asked = () if texts is None else as_texts(texts, OPERATION)
    check_generate(generate, listed, OPERATION)
    check_neighborhood(listed, OPERATION, distracted=distracted, kl=kl)
    _warn_of_subjects(listed, edit)
    applied = edit is not None and edit.check_fits(model, OPERATION, hooks=ready, otherwise=AS_HOOKS)
    warn_of_twice(model, ready, OPERATION, stacklevel=2)
    if kl or asked:
        _check_comparable(kl, edit, ready, applied=applied)
    bos = tokens.resolve_bos(model, prepend_bos)
    if edit is not None and prepend_bos is None and edit.provenance.prepend_bos != bos:
        made, now = ("with" if flag else "without" for flag in (edit.provenance.prepend_bos, bos))
        warnings.warn(
            f"{OPERATION}: the edit was computed {made} a BOS and is evaluated {now} one, the model's default; "
            f"pass prepend_bos={not bos} to ask as it was computed, or prepend_bos={bos} if this is meant.",
            stacklevel=2,
        )

    def switched() -> AbstractContextManager[object]:
        return nullcontext() if edit is None or applied else edit.on(model)

    judge = Judge(
        model,
        OPERATION,
        prepend_bos=bos,
        distracted=distracted,
        kl=kl,
        texts=asked,
        generate=generate,
        batch_size=batch_size,
    )
    scores: list[RecordScores] = []
    drifts: tuple[Drift, ...] = ()
    portions = list(judge.portions(listed))
    for portion in portions:
        ready_to_ask = judge.prepare(portion)
        with switched():
            scores += judge.scores(ready_to_ask, ready)
            if portion is portions[-1]:
                drifts = judge.drifts(ready)
    made = host.provenance(model, prepend_bos=bos)
    return Evaluation(scores=tuple(scores), provenance=made, drifts=drifts, engine=judge.engine)


def _warn_of_subjects(records: Sequence[EditRecord], edit: Edit | None) -> None:
    """Warn of records that are not about what the edit changes."""
    subjects = {request.subject for request in edit.requests} if edit is not None else set[str]()
    others = [record for record in records if record.request.subject not in subjects]
    if subjects and others:
        warnings.warn(
            f"{OPERATION}: {len(others)} of {counted(len(records), 'record')} about other subjects than those "
            f"of {edit!r}, e.g. {others[0].request}; expected those that it was computed for, as ES, PS and S say "
            "whether it worked; pass these, or go on if this is meant.",
            stacklevel=3,
        )


def _check_comparable(kl: bool, edit: Edit | None, hooks: Sequence[NamedHook], *, applied: bool) -> None:
    """Refuse comparisons with the unedited model where there is none.

    Raises:
        ValueError: If there is neither edit nor hooks, or the edit is applied.
    """
    wanted = "kl=True" if kl else "texts="
    if applied:
        raise ValueError(
            f"{OPERATION}: {wanted} compares with the model without the edit, but {edit!r} is applied to it; expected "
            "it off; call edit.undo(model) first, evaluate switches it on itself."
        )
    if edit is None and not hooks:
        raise ValueError(
            f"{OPERATION}: {wanted} compares the model with and without something; expected edit= or hooks=; pass an "
            "edit that is not applied, e.g. rome_edit(..., apply=False), or leave it out."
        )
