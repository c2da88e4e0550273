"""A fact to edit, as plain strings.

``EditRequest("{} is in the city of", "The Eiffel Tower", "Rome")`` asks that the prompt "The Eiffel Tower
is in the city of" continue with " Rome". The one space between prompt and target is added here, so that a
target may be given with or without it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar, cast

from tl_edit import show

T = TypeVar("T")


@dataclass(frozen=True)
class EditRequest:
    """One fact: a relation, a subject, and the object it shall have.

    Raises:
        ValueError: If a field is not a string or is empty; if ``relation`` has not exactly one ``{}`` or ends
            in a space; if ``target_new`` equals ``target_true``.
    """

    relation: str
    """The template with exactly one ``{}`` where the subject goes; the object follows at its end."""
    subject: str
    target_new: str
    """The object to write (o* in the papers)."""
    target_true: str | None = None
    """The object that the model holds now (o^c), where known; evaluation compares the two."""

    def __post_init__(self) -> None:
        """Check the fields and drop the space that a target may begin with."""
        for field in fields(self):
            text = getattr(self, field.name)
            if text is None and field.name == "target_true":
                continue
            if not isinstance(text, str):
                raise ValueError(
                    f"EditRequest: {field.name} is {text!r} of type {type(text).__name__}; expected a string"
                    f"{' or None' if field.name == 'target_true' else ''}; convert it, e.g. str(...)."
                )
            if not text.strip():
                raise ValueError(f"EditRequest: {field.name} is empty; expected words, e.g. {_EXAMPLE[field.name]!r}.")
        check_template(self.relation, "relation")
        if self.relation.endswith(" "):
            raise ValueError(
                f"EditRequest: relation {self.relation!r} ends in a space; the space before the target is added "
                f"for you and two would be tokenised differently; write {self.relation.rstrip()!r}."
            )
        if self.subject != self.subject.strip():
            raise ValueError(
                f"EditRequest: subject {self.subject!r} begins or ends with a space; expected the bare name; "
                "put spaces into the relation."
            )
        for name in ("target_new", "target_true"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, text.strip())
        if self.target_new == self.target_true:
            raise ValueError(
                f"EditRequest: target_new and target_true are both {self.target_new!r}; expected two different "
                "objects; nothing would be edited."
            )

    @property
    def prompt(self) -> str:
        """The relation with the subject put in; the target follows after one space."""
        return self.relation.replace("{}", self.subject, 1)

    def _repr_html_(self) -> str:
        rows = [("prompt", self.prompt), ("subject", self.subject), ("new object", self.target_new)]
        return show.table([*rows, ("true object", self.target_true or "–")])

    def __str__(self) -> str:
        old = f" (was {self.target_true})" if self.target_true else ""
        return f"{self.prompt} → {self.target_new}{old}"


def as_several(values: object, kind: type[T], operation: str, *, example: str) -> tuple[T, ...]:
    """One ``kind`` or several as a tuple, checked.

    Raises:
        ValueError: If there is none, or something else among them; it shows the ``example``.
    """
    listed: tuple[object, ...] = (values,)
    if isinstance(values, Iterable) and not isinstance(values, str | Mapping):
        listed = tuple(cast(Iterable[object], values))
    if not listed:
        raise ValueError(f"{operation} needs at least one {kind.__name__}; found none; pass [{example}].")
    checked: list[T] = []
    for value in listed:
        if not isinstance(value, kind):
            raise ValueError(
                f"{operation}: found something of type {type(value).__name__}; expected {kind.__name__}; "
                f"write {example}."
            )
        checked.append(value)
    return tuple(checked)


def as_requests(requests: object, operation: str) -> tuple[EditRequest, ...]:
    """One request or several as a tuple, checked; see `as_several`."""
    example = "EditRequest('{} is in the city of', 'The Eiffel Tower', 'Rome')"
    return as_several(requests, EditRequest, operation, example=example)


def as_prefixes(prefixes: object, operation: str) -> tuple[str, ...]:
    """Prefix templates as a tuple, checked; None is none. Taken once, so that an iterator serves several readers.

    Raises:
        ValueError: If they are one string or hold something else than templates with exactly one ``{}``.
    """
    if prefixes is None:
        return ()
    if isinstance(prefixes, str):
        raise ValueError(f"{operation}: prefixes is one string; expected several; write [{prefixes!r}].")
    kind = type(prefixes).__name__
    if not isinstance(prefixes, Iterable) or isinstance(prefixes, dict):
        raise ValueError(
            f"{operation}: prefixes is of type {kind}; expected templates or None; write e.g. ['It was. {{}}']."
        )
    templates: list[str] = []
    for template in cast(Iterable[object], prefixes):
        if not isinstance(template, str):
            raise ValueError(
                f"{operation}: prefixes holds {template!r} of type {type(template).__name__}; expected templates; "
                "write e.g. 'It was. {}'."
            )
        check_template(template, "prefix")
        templates.append(template)
    return tuple(templates)


def as_request(request: object, operation: str) -> EditRequest:
    """The one request that ``operation`` takes.

    Raises:
        ValueError: If there is none, more than one, or something else.
    """
    found = as_requests(request, operation)
    if len(found) > 1:
        raise ValueError(f"{operation} takes one request; found {len(found)}; call it once for each.")
    return next(iter(found))


_EXAMPLE = {
    "relation": "{} is in the city of",
    "subject": "The Eiffel Tower",
    "target_new": "Rome",
    "target_true": "Paris",
}


def check_template(template: str, what: str) -> None:
    """Refuse a template that has not exactly one ``{}``, or has it in further braces.

    Raises:
        ValueError: with what was found and an example.
    """
    found = template.count("{}")
    if found != 1:
        raise ValueError(
            f"{what} {template!r} has {found} placeholders; expected exactly one '{{}}' where the "
            f"{'subject' if what == 'relation' else 'prompt'} goes, e.g. "
            f"{_EXAMPLE['relation'] if what == 'relation' else 'It was. {}'!r}."
        )
    if "{{}}" in template:
        raise ValueError(
            f"{what} {template!r} has braces around its placeholder, which would stay in the text; expected '{{}}' "
            f"alone; write {template.replace('{{}}', '{}')!r}."
        )
