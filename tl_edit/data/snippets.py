"""Texts about objects and subjects, as published in attribute_snippets.json: by relation and the object's id."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tl_edit import sources
from tl_edit.data.published import FILES, published_file


class Snippets:
    """Texts by relation and object, each about a thing with a name."""

    def __init__(self, by_relation: Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]]) -> None:
        self._by_relation = by_relation

    @classmethod
    def read(cls, source: str | Path, operation: str) -> "Snippets":
        """From a file, or the published one by the name "attribute_snippets".

        Raises:
            ValueError: If there is none, or it is of another kind.
        """
        path = sources.given_path(source)
        if not path.is_file() and str(source) == "attribute_snippets":
            path = published_file("attribute_snippets", operation, argument="..., snippets=")
        if not path.is_file():
            raise ValueError(
                f"{operation}: snippets= {path} is no file; expected the published "
                f"{FILES['attribute_snippets'][1]}; check the path, or pass snippets='attribute_snippets'."
            )
        try:
            found: Any = json.loads(sources.content(path, operation))
            # Some are empty.
            texts = {
                relation: {
                    thing: tuple((each["name"], each["text"]) for each in listed if each["text"].strip())
                    for thing, listed in by_thing.items()
                }
                for relation, by_thing in found.items()
            }
        except (AttributeError, KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{operation}: snippets= {path} is not of the published kind ({sources.reason(error)}); expected JSON "
                "with [relation_id][object's id] a list of objects with name and text; pass the path of "
                f"{FILES['attribute_snippets'][1]}."
            ) from error
        return cls(cast(Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]], texts))

    def about(self, relation_id: str, thing: str, name: str | None = None) -> tuple[str, ...]:
        """Texts about what has this relation to ``thing``; with a ``name``, those about what is called so."""
        found = self._by_relation.get(relation_id, {}).get(thing, ())
        return tuple(text for called, text in found if name in (None, called))
