"""What is given to measure edits with, checked."""

import reprlib
import warnings
from collections.abc import Sequence
from typing import cast

from tl_edit import tokens
from tl_edit.counted import counted
from tl_edit.data import EditRecord, as_records
from tl_edit.edit import Edit, edits_on
from tl_edit.edit.as_hooks import is_hooked
from tl_edit.host import Model


def check_edit(model: Model, edit: object, operation: str, why: str, *, allow_mismatch: bool) -> None:
    """Refuse what is no edit of this model that is off.

    Args:
        model: The model.
        edit: What was given.
        operation: Whose argument it is.
        why: Why it must be off.
        allow_mismatch: Whether the model may have other weights than the edit was computed on.

    Raises:
        ValueError: If it is something else, is applied, or was computed on other weights.
    """
    if not isinstance(edit, Edit):
        raise ValueError(
            f"{operation}: edit is of type {type(edit).__name__}; expected an Edit; pass what rome_edit(model, "
            "request, moments, apply=False) returns."
        )
    now = edits_on(model, operation)
    if edit in now:
        raise ValueError(
            f"{operation}: {edit!r} is applied to this model; expected it off, as {why}; call edit.undo(model) first."
        )
    facts = set(edit.requests)
    on = [other for other in now if facts & set(other.requests)]
    if on or (facts and is_hooked(model)):
        found = f"{on[0]!r} is applied" if on else "hooks of an edit are on the model"
        warnings.warn(
            f"{operation}: {found} while {edit!r} is measured, and is part of what is called unedited; expected a "
            "model without it; undo it or take the hooks off, or go on if this is meant.",
            stacklevel=3,
        )
    edit.check_fits(model, operation, allow_mismatch=allow_mismatch)


def checked_edits(edits: object, operation: str) -> tuple[Edit, ...]:
    """Two edits or more, each once.

    Raises:
        ValueError: If they are something else.
    """
    given = [edits] if isinstance(edits, Edit) else edits
    listed = list(cast(Sequence[object], given)) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if len(listed) < 2:
        found = f"{len(listed)}" if listed else reprlib.repr(cast(object, given))
        raise ValueError(
            f"{operation}: found {found}; expected two edits or more, as it is about what they do to each other; pass "
            "e.g. [rome_edit(model, request, moments, apply=False) for request in requests]."
        )
    known: dict[str, int] = {}
    for i, edit in enumerate(listed):
        if not isinstance(edit, Edit):
            raise ValueError(
                f"{operation}: edits holds something of type {type(edit).__name__}; expected edits; pass what "
                "rome_edit(model, request, moments, apply=False) returns."
            )
        if edit.fingerprint in known:
            raise ValueError(
                f"{operation}: edits {known[edit.fingerprint]} and {i} are the same, {edit!r}; expected each once; "
                "leave one out, or pass edit * 2 for twice the change."
            )
        known[edit.fingerprint] = i
    return tuple(cast(list[Edit], listed))


def checked_records(records: object, edits: Sequence[Edit], operation: str) -> tuple[EditRecord, ...]:
    """One record for each edit.

    Raises:
        ValueError: If they are something else, or more or fewer.
    """
    listed = as_records(records, operation)
    if len(listed) != len(edits):
        raise ValueError(
            f"{operation}: {counted(len(listed), 'record')} for {len(edits)} edits; expected one for each, in their "
            "order; pass e.g. [EditRecord(edit.requests[0]) for edit in edits]."
        )
    for i, (record, edit) in enumerate(zip(listed, edits, strict=True)):
        subjects = [request.subject for request in edit.requests]
        if subjects and record.request.subject not in subjects:
            warn_of_subject(operation, f"record {i}, {record.request.subject!r}", f"edit {i}", edit, stacklevel=3)
    return listed


def warn_of_subject(operation: str, what: str, which: str, edit: Edit, *, stacklevel: int) -> None:
    """Warn of records that are about none of an edit's subjects."""
    warnings.warn(
        f"{operation}: {what}: not about a subject of {which}, {edit!r}; expected records that judge it (of several "
        "edits in their order); pass those, or go on if this is meant.",
        stacklevel=stacklevel + 1,
    )


def check_integer(name: str, value: object, operation: str, *, least: int, default: int) -> None:
    """Refuse what is no integer of ``least`` or more.

    Raises:
        ValueError: naming it.
    """
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(
            f"{operation}: {name} is {value!r}; expected an integer of {least} or more, below 2**63; the default is "
            f"{default}."
        )


def common_bos(model: Model, edits: Sequence[Edit], prepend_bos: bool | None, operation: str) -> bool:
    """What is asked for, or else what all edits were computed with.

    Raises:
        ValueError: If they were computed with and without.
    """
    made = {edit.provenance.prepend_bos for edit in edits}
    if prepend_bos is None and len(made) > 1:
        raise ValueError(
            f"{operation}: some of the edits were computed with a BOS and some without; expected the same of all; "
            "compute them alike, or say how to ask with prepend_bos=True or False."
        )
    return tokens.resolve_bos(model, made.pop() if prepend_bos is None else prepend_bos)
