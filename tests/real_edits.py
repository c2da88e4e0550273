"""Edits of the bundled model."""

import warnings
from collections.abc import Sequence

from tl_edit import Edit, EditRecord, rome_edit, second_moment
from tl_edit.factworld import Fact, fact_texts
from tl_edit.factworld.records import edit_record, objects_of


def rome_edits(model, world: Sequence[Fact], facts: Sequence[Fact]) -> tuple[list[Edit], list[EditRecord]]:
    """Each fact alone, with the first other object of its relation, and the records that judge them; not applied."""
    moments = second_moment(model, fact_texts(600), layers=[0], progress=False)
    records = [
        edit_record(fact, next(name for name in objects_of(fact.relation, world) if name != fact.object), world)
        for fact in facts
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [rome_edit(model, record.request, moments, apply=False) for record in records], records
