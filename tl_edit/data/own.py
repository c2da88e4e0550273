"""Tables with columns that are called as the fields of `EditRecord` are: read and written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from tl_edit import sources
from tl_edit.data import fields as take
from tl_edit.data.fields import Fields
from tl_edit.data.record import FACTS, LABELS, PROMPTS, TEXTS, EditRecord, as_records
from tl_edit.data.schema import Schema
from tl_edit.request import EditRequest


def own_relation(fields: Fields, subject: str) -> str:
    """The template: ``relation``, or ``prompt`` with the subject taken out.

    Raises:
        ValueError: If neither is there, both are and differ, or the subject is not in the prompt.
    """
    template, asked = take.optional_text(fields, "relation"), take.optional_text(fields, "prompt")
    if template is None and asked is None:
        raise ValueError("relation and prompt are missing; expected a template with '{}' or a prompt with the subject")
    if template is None:
        if subject not in str(asked) and "{}" in str(asked):
            raise ValueError("prompt is a template; expected it under the name relation; rename it")
        return take.relation(str(asked), subject, "prompt")
    template = take.prompt(template)
    if asked is not None and template.replace("{}", subject, 1) != take.prompt(asked):
        raise ValueError(f"prompt {take.shown(asked)} is not relation {take.shown(template)} with the subject put in")
    return template


def own_record(fields: Fields) -> EditRecord:
    """A record by its fields' own names.

    Raises:
        ValueError: If something needed is missing or is not what it should be.
    """
    subject = take.text(fields, "subject")
    relation = own_relation(fields, subject)
    request = EditRequest(relation, subject, take.text(fields, "target_new"), take.optional_text(fields, "target_true"))
    return EditRecord(
        request,
        paraphrase_prompts=take.prompts(fields, "paraphrase_prompts"),
        neighborhood_prompts=take.prompts(fields, "neighborhood_prompts"),
        other_facts=take.pairs(fields, "other_facts"),
        unrelated_facts=take.pairs(fields, "unrelated_facts"),
        attribute_prompts=take.prompts(fields, "attribute_prompts"),
        generation_prompts=take.prompts(fields, "generation_prompts"),
        reference_texts=take.texts(fields, "reference_texts"),
        essence_texts=take.texts(fields, "essence_texts"),
        name=take.label(fields, "name"),
        relation_id=take.label(fields, "relation_id"),
    )


OWN: Schema[EditRecord] = Schema(
    "own",
    marks=("subject", "target_new"),
    columns=("relation", "prompt", "subject", "target_new", "target_true", *PROMPTS, *FACTS, *TEXTS, *LABELS),
    make=own_record,
)


def write_records(path: str | Path, records: EditRecord | Sequence[EditRecord]) -> Path:
    """Write records as JSON lines that `read_records` reads back, equal.

    Args:
        path: Of a .jsonl file, in a folder that exists ("~" is your home). One that is there already is replaced.
        records: One or several.

    Returns:
        The path.

    Raises:
        ValueError: For no records, a path that does not end in .jsonl, or one that cannot be written; then nothing is.
    """
    operation = "write_records"
    listed = as_records(records, operation)
    if not isinstance(cast(object, path), str | Path):
        raise ValueError(
            f"{operation}: the path is of type {type(path).__name__}; expected a string or a Path; write e.g. "
            "'records.jsonl'."
        )
    target = sources.given_path(path)
    if target.suffix.lower() != ".jsonl":
        raise ValueError(
            f"{operation}: the path {str(path)!r} ends in {target.suffix!r}; expected .jsonl; write e.g. "
            f"{target.stem or 'records'}.jsonl."
        )
    half = target.with_name(target.name + ".part")
    try:
        # The same bytes on every system.
        with half.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{json.dumps(_own_fields(record), ensure_ascii=False)}\n" for record in listed)
        half.replace(target)
    except (OSError, UnicodeEncodeError) as error:
        half.unlink(missing_ok=True)
        raise ValueError(
            f"{operation}: {target} cannot be written ({sources.reason(error)}); expected a path in a folder that "
            "exists, enough space, and texts of whole characters; choose another path."
        ) from error
    return target


def _own_fields(record: EditRecord) -> dict[str, object]:
    """What is not empty, by column."""
    request = record.request
    asked = {name: getattr(request, name) for name in ("relation", "subject", "target_new", "target_true")}
    judged = {name: getattr(record, name) for name in (*PROMPTS, *FACTS, *TEXTS, *LABELS)}
    return {name: value for name, value in (asked | judged).items() if value}
