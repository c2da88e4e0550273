"""Scores as plain values that JSON takes, and back, equal to the last bit."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast, get_args

from tl_edit.data import EditRecord
from tl_edit.evaluate.scores import About, FactScore, Group, PromptScore, RecordScores, TextScores
from tl_edit.request import EditRequest


def plain_scores(scores: RecordScores) -> dict[str, Any]:
    """All but the record itself; groups without prompts are left out, and ``tied`` where probabilities are not."""
    groups = {
        name: [_plain_score(each) for each in getattr(scores, name)]
        for name in (*get_args(Group), *get_args(About))
        if getattr(scores, name)
    }
    return groups if scores.texts == TextScores() else groups | {"texts": asdict(scores.texts)}


def _plain_score(score: PromptScore | FactScore) -> dict[str, Any]:
    return {name: value for name, value in asdict(score).items() if name != "tied" or value is not None}


def read_scores(record: EditRecord, plain: Mapping[str, Any]) -> RecordScores:
    """What `plain_scores` made, for its record."""
    several: dict[str, Any] = {}
    for name in get_args(Group):
        several[name] = tuple(PromptScore(**_tuples(each)) for each in plain.get(name, ()))
    for name in get_args(About):
        several[name] = tuple(FactScore(**_tuples(each)) for each in plain.get(name, ()))
    return RecordScores(record=record, texts=TextScores(**_tuples(plain.get("texts", {}))), **several)


def read_record(plain: Mapping[str, Any]) -> EditRecord:
    """The record of ``dataclasses.asdict(record)``, perhaps by way of JSON."""
    others = _tuples({name: value for name, value in plain.items() if name != "request"})
    return EditRecord(EditRequest(**plain["request"]), **others)


def _tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples."""
    return {name: _tuple(value) for name, value in plain.items()}


def _tuple(value: object) -> object:
    return tuple(_tuple(each) for each in cast(list[object], value)) if isinstance(value, list) else value
