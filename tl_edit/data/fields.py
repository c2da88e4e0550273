"""Taking columns out of a row, with advice where they are not what they should be.

The messages are about one record; what was read, and from where, is said by who reports them.
"""

from collections.abc import Mapping, Sequence
from typing import cast

Fields = Mapping[str, object]
"""A row's columns. What a row does not have, tables of the hub hold None for, and pandas writes NaN or nothing."""

_SHOWN = 120
"""Characters of a value in a message."""


def shown(found: object) -> str:
    """A value as a message shows it."""
    whole = repr(found)
    return whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]} ..."


def present(fields: Fields, name: str) -> object:
    """What a column holds; None where that is nothing."""
    found = fields.get(name)
    nothing = found != found or (isinstance(found, str) and not found.strip())
    return None if nothing else found


def text(fields: Fields, name: str, *, within: str = "") -> str:
    """A column that must hold words.

    Raises:
        ValueError: If it does not.
    """
    found = optional_text(fields, name, within=within)
    if found is None:
        what = "missing" if fields.get(name) is None else shown(fields[name])
        raise ValueError(f"{within}{name} is {what}; expected words")
    return found


def optional_text(fields: Fields, name: str, *, within: str = "") -> str | None:
    """A column that holds words, or is absent.

    Raises:
        ValueError: If it holds something else.
    """
    found = present(fields, name)
    if found is not None and not isinstance(found, str):
        what, several = shown(found), ", not a list of them" if isinstance(found, list | tuple) else ""
        raise ValueError(f"{within}{name} is {what}; expected words{several}")
    return found


def prompt(found: str) -> str:
    """Without spaces at its end: the one before the object is added later, and two are other tokens."""
    return found.rstrip(" ")


def whole_prompt(found: str, name: str) -> str:
    """A prompt that is asked as it stands; see `prompt`.

    Raises:
        ValueError: If a subject is still to be put in.
    """
    if "{}" in found:
        raise ValueError(f"{name} holds {shown(found)}; expected whole prompts; write the subject in place of '{{}}'")
    return prompt(found)


def label(fields: Fields, name: str) -> str:
    """A name or number as a string; "" where it is absent. A number is written without a fraction of zero.

    Raises:
        ValueError: If it is neither.
    """
    found = fields.get(name)
    if found is None or found != found:
        return ""
    if not isinstance(found, str | int | float):
        raise ValueError(f"{name} is {shown(found)}; expected a string or a number")
    return str(int(found) if isinstance(found, float) and found.is_integer() else found)


def texts(fields: Fields, name: str) -> tuple[str, ...]:
    """A column of several texts, or of one; none where it is absent.

    Raises:
        ValueError: If something else is in it.
    """
    found = present(fields, name)
    listed = (found,) if isinstance(found, str) else _several(found, name)
    wrong = [each for each in listed if not isinstance(each, str) or not each.strip()]
    if wrong:
        raise ValueError(f"{name} holds {shown(wrong[0])}; expected texts of some words")
    return cast(tuple[str, ...], listed)


def prompts(fields: Fields, name: str) -> tuple[str, ...]:
    """A column of several prompts, or of one; see `whole_prompt`.

    Raises:
        ValueError: If something else is in it.
    """
    return tuple(whole_prompt(found, name) for found in texts(fields, name))


def pairs(fields: Fields, name: str) -> tuple[tuple[str, str], ...]:
    """A column of prompts with their answers; none where it is absent.

    Raises:
        ValueError: If something else is in it.
    """
    found: list[tuple[str, str]] = []
    for each in _several(present(fields, name), name):
        pair = tuple(cast(Sequence[object], each)) if isinstance(each, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(part, str) and part.strip() for part in pair):
            raise ValueError(f"{name} holds {shown(cast(object, each))}; expected [prompt, answer] pairs")
        question, answer = cast(tuple[str, str], pair)
        found.append((whole_prompt(question, name), answer))
    return tuple(found)


def relation(asked: str, subject: str, name: str) -> str:
    """The template of a prompt that has its subject in it: ``{}`` where the subject first occurs.

    Raises:
        ValueError: If it does not occur.
    """
    return prompt(containing(asked, subject, name)).replace(subject, "{}", 1)


def containing(asked: str, subject: str, name: str) -> str:
    """The prompt ``asked``, in which the subject is to be found.

    Raises:
        ValueError: If it is not.
    """
    if subject not in asked:
        raise ValueError(f"the subject {subject!r} is not in {name} {shown(asked)}; expected it there, spelled so")
    return asked


def _several(found: object, name: str) -> tuple[object, ...]:
    if found is None:
        return ()
    if not isinstance(found, list | tuple):
        raise ValueError(f"{name} is {shown(found)}; expected a list")
    return tuple(cast(Sequence[object], found))
