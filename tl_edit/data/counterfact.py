"""CounterFact (Meng et al. 2022), as published and in the flat layout of other tools."""

from collections.abc import Callable, Mapping
from typing import cast

from tl_edit.data import fields as take
from tl_edit.data.fields import Fields
from tl_edit.data.record import PROMPTS, EditRecord
from tl_edit.data.schema import Schema
from tl_edit.data.snippets import Snippets
from tl_edit.request import EditRequest

_NO_SNIPPETS = Snippets({})


def published_record(fields: Fields, snippets: Snippets = _NO_SNIPPETS) -> EditRecord:
    """A record of counterfact.json or multi_counterfact.json.

    Args:
        fields: The request is ``requested_rewrite``, with a template in ``prompt``, and with objects that are
            ``{"str": ..., "id": ...}`` or strings.
        snippets: Where the record's texts are looked up by the objects' ids.

    Raises:
        ValueError: If something needed is missing or is not what it should be.
    """
    found = fields.get("requested_rewrite")
    if not isinstance(found, Mapping):
        raise ValueError(
            f"requested_rewrite is {take.shown(found)}; expected an object with prompt, subject and target_new"
        )
    rewrite = cast(Fields, found)
    inside = "requested_rewrite."
    relation = take.prompt(take.text(rewrite, "prompt", within=inside))
    subject = take.text(rewrite, "subject", within=inside)
    new, new_id = _object(rewrite, "target_new")
    true, true_id = _object(rewrite, "target_true")
    if new is None:
        raise ValueError("requested_rewrite.target_new is missing; expected words")
    relation_id = take.label(rewrite, "relation_id")
    return EditRecord(
        EditRequest(relation, subject, new, true),
        paraphrase_prompts=take.prompts(fields, "paraphrase_prompts"),
        neighborhood_prompts=take.prompts(fields, "neighborhood_prompts"),
        attribute_prompts=take.prompts(fields, "attribute_prompts"),
        generation_prompts=take.prompts(fields, "generation_prompts"),
        reference_texts=snippets.about(relation_id, new_id),
        essence_texts=snippets.about(relation_id, true_id, subject),
        name=take.label(fields, "case_id"),
        relation_id=relation_id,
    )


def _object(rewrite: Fields, name: str) -> tuple[str | None, str]:
    """An object's words and id; None and "" where there is none."""
    found = rewrite.get(name)
    if not isinstance(found, Mapping):
        return take.optional_text(rewrite, name, within="requested_rewrite."), ""
    named = cast(Fields, found)
    return take.text(named, "str", within=f"requested_rewrite.{name}."), take.label(named, "id")


def flat_record(fields: Fields) -> EditRecord:
    """A record of the flat layout, which has one paraphrase and one prompt about something else.

    That prompt is a neighbor's if its answer is the request's true object, else an unrelated fact.

    Raises:
        ValueError: If something needed is missing or is not what it should be.
    """
    subject, true = take.text(fields, "subject"), take.text(fields, "ground_truth")
    relation = take.relation(take.text(fields, "prompt"), subject, "prompt")
    elsewhere, answer = (take.optional_text(fields, name) for name in ("locality_prompt", "locality_ground_truth"))
    if (elsewhere is None) != (answer is None):
        raise ValueError("locality_prompt and locality_ground_truth are not both there; expected both or none")
    neighborhood, unrelated = (), ()
    if elsewhere is not None and answer is not None:
        if answer.strip() == true.strip():
            neighborhood = (take.whole_prompt(elsewhere, "locality_prompt"),)
        else:
            unrelated = ((take.whole_prompt(elsewhere, "locality_prompt"), answer),)
    return EditRecord(
        EditRequest(relation, subject, take.text(fields, "target_new"), true),
        paraphrase_prompts=take.prompts(fields, "rephrase_prompt"),
        neighborhood_prompts=neighborhood,
        unrelated_facts=unrelated,
        name=take.label(fields, "case_id"),
    )


PUBLISHED: Schema[EditRecord] = Schema(
    "CounterFact",
    marks=("requested_rewrite",),
    columns=("case_id", "pararel_idx", "requested_rewrite", *PROMPTS),
    make=published_record,
)
"""counterfact.json and multi_counterfact.json; the latter has no attribute prompts."""

FLAT: Schema[EditRecord] = Schema(
    "CounterFact, flat",
    marks=("prompt", "subject", "target_new", "ground_truth"),
    columns=(
        "case_id",
        "prompt",
        "subject",
        "target_new",
        "ground_truth",
        "rephrase_prompt",
        "locality_prompt",
        "locality_ground_truth",
    ),
    make=flat_record,
)


def with_snippets(snippets: Snippets) -> Callable[[Fields], EditRecord]:
    """`published_record` with texts."""
    return lambda fields: published_record(fields, snippets)
