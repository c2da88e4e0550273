"""zsRE (Levy et al. 2017) in the layout of MEND's and ROME's evaluation, zsre_mend_eval.json."""

from tl_edit.data import fields as take
from tl_edit.data.fields import Fields
from tl_edit.data.record import EditRecord
from tl_edit.data.schema import Schema
from tl_edit.request import EditRequest


def zsre_record(fields: Fields) -> EditRecord:
    """A question, whose first answer is the object to write, one rephrasing, and a question about something else.

    No object is known to be the model's own, so there is no ``target_true``, and no success rate that compares with it.

    Raises:
        ValueError: If something needed is missing or is not what it should be.
    """
    subject = take.text(fields, "subject")
    relation = take.relation(take.text(fields, "src"), subject, "src")
    answers = take.texts(fields, "answers")
    if not answers:
        raise ValueError(
            f"answers is {take.shown(fields.get('answers'))}; expected at least one, the first is the object"
        )
    question, answer = (take.optional_text(fields, name) for name in ("loc", "loc_ans"))
    if (question is None) != (answer is None):
        raise ValueError("loc and loc_ans are not both there; expected both or none")
    # These questions are without their mark, which the published program adds to all.
    unrelated = () if question is None or answer is None else ((f"{question}?", answer),)
    return EditRecord(
        EditRequest(relation, subject, answers[0]),
        paraphrase_prompts=take.prompts(fields, "rephrase"),
        unrelated_facts=unrelated,
    )


ZSRE: Schema[EditRecord] = Schema(
    "zsRE",
    marks=("src", "answers"),
    columns=("subject", "src", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond"),
    make=zsre_record,
)
