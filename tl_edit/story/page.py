"""A fact's story as one page: every picture with the question that it answers, and what would speak against it.

And a shorter page of an edit, before and after.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from tl_edit import host, show
from tl_edit.counted import counted
from tl_edit.edit import Edit
from tl_edit.evaluate import Evaluation, RecordScores, compare
from tl_edit.extras import extra
from tl_edit.follow import NextTokens, attention_change, edit_circuit, logit_lens, next_tokens
from tl_edit.host import Model
from tl_edit.memory import edit_memory
from tl_edit.story.answers import asked
from tl_edit.story.terminal import Told

RESTORING = (
    "The subject's embeddings are spoiled by noise. Then one state after another is put back as it was without noise: "
    "blue is where that brings the answer back, as far as the noise has taken it away (Meng et al. 2022, section 2)."
)
BY_LAYER = "The same by layer, on the tokens themselves."


def save_story(path: str | Path, model: Model, told: Told, texts: Sequence[str]) -> None:
    """Write the page; the edit, which the story has taken back, is switched on where a picture needs it.

    Args:
        path: The file.
        model: The model, unedited.
        told: What the story found.
        texts: Where to look for what the edit answers to, usually the second moment's.

    Raises:
        ValueError: If the file cannot be written.
    """
    request = told.record.request
    title = f"{request.subject}: {request.target_new} instead of {request.target_true or '?'}"
    show.save_html(path, *_chapters(model, told, texts), title=title)


def save_before_and_after(path: str | Path, model: Model, edit: Edit, before: Evaluation, after: Evaluation) -> None:
    """Write what an edit changes as a page, without its story.

    Args:
        path: The file.
        model: The model, unedited.
        edit: The edit, which is switched on where a picture needs it.
        before: Of the model without it.
        after: Of the same records with it.

    Raises:
        ValueError: If the file cannot be written.
    """
    one = len(before.scores) == 1
    title = str(before.scores[0].record.request) if one else f"{edit.method}: {counted(len(before.scores), 'edit')}"
    show.save_html(path, *_before_and_after(model, edit, before, after, one=one), title=title)


def _before_and_after(
    model: Model, edit: Edit, before: Evaluation, after: Evaluation, *, one: bool
) -> Iterator[object]:
    yield f"{host.model_name(model)} without and with this edit, measured just now."
    yield edit
    yield "# Before and after"
    yield compare({"before": before, "after": after})
    if one:
        old, new = before.scores[0], after.scores[0]
        request, bos = old.record.request, before.provenance.prepend_bos if before.provenance else None
        yield _prompts(old, new)
        yield "# Token by token"
        said = _or_why(lambda: next_tokens(model, request.prompt, request.target_new, edit=edit, prepend_bos=bos))
        yield said
        if isinstance(said, NextTokens):
            yield said.view()


def _chapters(model: Model, told: Told, texts: Sequence[str]) -> Iterator[object]:
    request, edit, bos = told.record.request, told.edit, told.edit.provenance.prepend_bos
    new, old = request.target_new, request.target_true
    after = next_tokens(model, request.prompt, new, edit=edit, prepend_bos=bos)
    yield (
        f"One fact of {host.model_name(model)} ({host.n_layers(model)} layers): where it is kept, what writing another "
        "one there changes, and how that comes about. All of it was measured on this model, just now; nothing on this "
        "page is fetched from anywhere."
    )
    yield "# 1 The fact"
    yield f"What the model says next after “{request.prompt}”, before and after the edit."
    yield after
    yield "# 2 Where it is kept"
    yield (
        f"{RESTORING} The last token of the last layers brings it all back in any model; blue at the subject says "
        "that the fact is looked up there."
    )
    yield told.trace
    yield BY_LAYER
    yield told.trace.view_tokens()
    yield "# 3 The edit"
    yield (
        "A change of rank one of a single matrix: at the subject's key the MLP now answers with the value that was "
        f"found to make the model say {new}, and the second moment of its keys keeps it from answering so elsewhere."
    )
    if not told.took:
        yield f"This edit failed: {new} is still not the likelier answer. What follows shows what it did instead."
    yield edit
    if find_spec("matplotlib") is not None:
        # A notebook would show what is drawn as it likes, too, and the page is what was asked for.
        with extra("matplotlib.pyplot", "save_story").ioff():
            drawn = edit.plot()
        yield drawn
    yield "# 4 Did it work, and what else moved"
    yield (
        "Success on the prompt alone is easily had. Paraphrases should follow, and other subjects' facts should stay: "
        "an edit that fails there has not learned a fact but a phrase, or ruined the model."
    )
    yield compare({"before": told.before, "after": told.after})
    yield _prompts(told.before.scores[0], told.after.scores[0])
    yield "# 5 Token by token"
    yield f"How likely each token is behind those before it, with “{new}” at the end."
    yield after.view()
    yield "# 6 Layer by layer"
    yield (
        "The same question asked after each layer, as if the others did nothing (the logit lens): where the one object "
        "overtakes the other."
    )
    objects = [new] if old is None else [new, old]
    yield _or_why(lambda: logit_lens(model, request.prompt, objects, edit=edit, prepend_bos=bos))
    yield "# 7 Where heads look"
    yield (
        "How attention changes, strongest heads first. Heads may look where they looked and find something else there; "
        "then little moves here."
    )
    yield _or_why(lambda: attention_change(model, request.prompt, edit=edit, prepend_bos=bos).view())
    if old is not None:
        yield "# 8 Who carries it"
        yield (
            f"What each component adds directly to how much likelier {new} is than {old}, before and after. The edit "
            "changes one MLP; others pass the change on."
        )
        yield _or_why(lambda: edit_circuit(model, request.prompt, new, old, edit=edit, prepend_bos=bos))
    yield "# 9 What it answers to"
    yield (
        f"The edit as a memory: the contexts that trigger it most, among its own prompt and {len(texts):,} other "
        "texts, and the tokens that its value says (Geva et al. 2021). The first should be its own subject; others are "
        "what it may spoil, as far as their coefficients come near. The value is read by later layers; what it says to "
        "the unembedding at once is seldom the new object."
    )
    yield _or_why(lambda: edit_memory(model, edit, [request.prompt, *texts], n_triggers=8, progress=False))
    yield "# 10 Undone"
    yield (
        f"The first half of the SHA-256 of W_out before {told.weights_before}, now {told.weights_now}: "
        + ("bit-identical." if told.restored else "NOT restored.")
    )


def _or_why(picture: Callable[[], object]) -> object:
    """A picture; where it cannot be had, as of objects with the same first token, why: the page is worth having."""
    try:
        return picture()
    except ValueError as error:
        return f"Left out. {error}"


def _prompts(before: RecordScores, after: RecordScores) -> "_Html":
    """All prompts of a record, with what the model says before and after."""
    rows = [each[:-1] for each in asked(before, after)]
    return _Html(show.table(rows, columns=("", "prompt", "should say", "before", "after")))


class _Html:
    """HTML that is ready."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html
