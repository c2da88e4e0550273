"""Real edits of the bundled model, made once: of facts of one relation, and of the facts of one subject."""

import warnings
from collections.abc import Sequence

import pytest

from tl_edit import Edit, EditRecord, rome_edit, second_moment
from tl_edit.factworld import fact_texts
from tl_edit.factworld.records import edit_record, objects_of


@pytest.fixture(scope="session")
def made(fact_model, world):
    """Makes ROME edits of facts: the first other object of the relation is written."""
    moments = second_moment(fact_model, fact_texts(600), layers=[0], progress=False)

    def make(facts: Sequence) -> tuple[list[Edit], list[EditRecord]]:
        records = [
            edit_record(fact, next(o for o in objects_of(fact.relation, world) if o != fact.object), world)
            for fact in facts
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [rome_edit(fact_model, each.request, moments, apply=False) for each in records], records

    return make
