"""KnownFacts (Meng et al. 2022): prompts that GPT-2 XL goes on with the right word, for tracing."""

from collections.abc import Callable

from tl_edit.data import fields as take
from tl_edit.data.counterfact import FLAT, PUBLISHED
from tl_edit.data.fields import Fields
from tl_edit.data.own import OWN, own_relation
from tl_edit.data.record import EditRecord, KnownFact
from tl_edit.data.schema import Schema
from tl_edit.request import check_template


def known_fact(fields: Fields) -> KnownFact:
    """A fact of known_1000.json; its ``attribute`` is the answer.

    Raises:
        ValueError: If something needed is missing, or the subject is not in the prompt.
    """
    subject = take.text(fields, "subject")
    asked = take.containing(take.prompt(take.text(fields, "prompt")), subject, "prompt")
    return KnownFact(asked, subject, take.text(fields, "attribute"))


def own_fact(fields: Fields) -> KnownFact:
    """A fact by our own names; ``target_true`` is the answer, too, and without one it is whatever the model says.

    Raises:
        ValueError: If something needed is missing, the subject is not in the prompt, or there are two answers.
    """
    subject = take.text(fields, "subject")
    relation = own_relation(fields, subject)
    check_template(relation, "relation")
    answer, true = (take.optional_text(fields, name) for name in ("answer", "target_true"))
    if answer is not None and true is not None and answer != true:
        raise ValueError(f"answer is {take.shown(answer)} and target_true {take.shown(true)}; expected one of them")
    return KnownFact(relation.replace("{}", subject, 1), subject, true if answer is None else answer)


def _fact_of(make: Callable[[Fields], EditRecord]) -> Callable[[Fields], KnownFact]:
    """What an edit's record says is true now."""

    def fact(fields: Fields) -> KnownFact:
        request = make(fields).request
        return KnownFact(request.prompt, request.subject, request.target_true)

    return fact


KNOWN: Schema[KnownFact] = Schema(
    "KnownFacts",
    marks=("prompt", "subject", "attribute"),
    columns=("known_id", "subject", "attribute", "template", "prediction", "prompt", "relation_id"),
    make=known_fact,
)

FACTS_OF_RECORDS: tuple[Schema[KnownFact], ...] = tuple(
    Schema(schema.name, schema.marks, schema.columns, _fact_of(schema.make)) for schema in (PUBLISHED, FLAT, OWN)
)
"""Records of edits say what is true, too."""

OWN_FACTS: Schema[KnownFact] = Schema(
    "own",
    marks=("subject",),
    columns=("relation", "prompt", "subject", "answer", "target_true"),
    make=own_fact,
)
