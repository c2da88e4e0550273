"""``python -m tl_edit``: a fact's whole story on the bundled model, offline: locate, edit, check, undo.

Exit codes: 0, all went well; 1, the edit did not take, or the weights were not restored; 2, the input cannot be used.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import tl_edit
from tl_edit import EditRecord, EditRequest
from tl_edit.factworld import MODEL_NAME, RELATIONS, Fact, fact_texts, facts, load_fact_model
from tl_edit.factworld.records import article_of, edit_record, objects_of, relation_template
from tl_edit.story import Story

DEFAULT_SUBJECT, DEFAULT_TARGET = "Eiffel Tower", "Rome"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        _make_lenient(stream)
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        if options.relation is not None and not options.relation.strip():
            raise ValueError(
                "--relation is empty; expected a template such as '{} is in the city of', or for the bundled model a "
                "relation's name; leave it out for any relation."
            )
        if options.list_facts:
            _list_facts(console, options)
            return 0
        bundled = options.model in (None, MODEL_NAME)
        record = _bundled_record(options) if bundled else _own_record(options, options.relation)
        texts = _texts(options)
        story = Story(_load(options), console, layer=options.layer, seed=options.seed, texts=texts)
        return 0 if story.tell(record) else 1
    except ValueError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]tl_edit:[/] {escape(str(error))}", soft_wrap=True)
        return 2


def _make_lenient(stream: Any) -> None:
    """Let a console that is not UTF-8 show question marks for what it lacks, such as an arrow, instead of failing."""
    if hasattr(stream, "reconfigure") and (stream.encoding or "").lower().replace("-", "") != "utf8":
        stream.reconfigure(errors="replace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tl_edit",
        description="Locate a fact in a language model, edit it with ROME, see what changed, and take it back.",
        epilog="Examples: python -m tl_edit --subject 'Miles Davis' --target-new opera   |   python -m tl_edit --model "
        "gpt2-medium --subject 'The Space Needle' --relation '{} is in the city of' --target-new Rome --texts wiki.txt",
    )
    parser.add_argument("--subject", help=f"what the fact is about (default: {DEFAULT_SUBJECT})")
    parser.add_argument(
        "--relation",
        help="template with one {} for the subject, or for the bundled model a relation's "
        "name or id, such as 'place of birth' or P19",
    )
    parser.add_argument("--target-new", help="the object to write (default: another object of the same relation)")
    parser.add_argument("--model", help="any model that TransformerLens can load (default: the bundled one, offline)")
    parser.add_argument("--layer", type=int, help="layer to edit (default: the published one for the model)")
    parser.add_argument("--seed", type=int, default=0, help="seed of prefixes, texts and fillers (default: 0)")
    parser.add_argument(
        "--texts",
        type=Path,
        help="a text file, one text per line, for the second moment of another "
        "model's keys (default: the bundled sentences, a poor sample for a large model)",
    )
    parser.add_argument(
        "--list-facts",
        action="store_true",
        help="list the bundled facts (with --subject or --relation: only those) and exit",
    )
    parser.add_argument("--version", action="version", version=f"tl_edit {tl_edit.__version__}")
    return parser


# --- what to edit --------------------------------------------------------------------------------------


def _find_relation(name: str) -> str:
    """A relation's id from its id or name."""
    wanted = name.strip().lower()
    for relation in RELATIONS.values():
        if wanted in (relation.id.lower(), relation.name.lower()):
            return relation.id
    names = ", ".join(relation.name for relation in RELATIONS.values())
    raise ValueError(
        f"--relation {name!r} is neither a template with one {{}} nor a relation of the bundled model; "
        f"expected one of: {names}; or write a template such as '{{}} is in the city of'."
    )


def _select(options: argparse.Namespace, world: Sequence[Fact]) -> list[Fact]:
    """The bundled facts that ``--subject`` and ``--relation`` (name or id) select."""
    subject = None if options.subject is None else options.subject.strip().lower()
    relation = _find_relation(options.relation) if options.relation and "{}" not in options.relation else None
    return [
        fact
        for fact in world
        if (subject is None or fact.subject.lower() == subject) and (relation is None or fact.relation == relation)
    ]


def _list_facts(console: Console, options: argparse.Namespace) -> None:
    chosen = _select(options, facts())
    if not chosen:
        given = {"--subject": options.subject, "--relation": options.relation}
        wanted = " and ".join(f"{name} {value!r}" for name, value in given.items() if value is not None)
        raise ValueError(f"--list-facts: no bundled fact has {wanted}; leave one of them out to see more.")
    if not console.is_terminal:
        # For grep and cut: one line a fact, whatever its length.
        for fact in chosen:
            cells = (fact.subject, RELATIONS[fact.relation].name, fact.object, fact.trained_templates[0])
            console.out("\t".join(cells).replace("{}", fact.subject), highlight=False)
        return
    table = Table(box=None, header_style="bold")
    for column in ("subject", "relation", "object", "as a prompt"):
        table.add_column(column, overflow="fold")
    for fact in chosen:
        prompt = fact.trained_templates[0].format(fact.subject)
        table.add_row(fact.subject, RELATIONS[fact.relation].name, fact.object, Text(prompt))
    console.print(table)
    console.print(f"{len(chosen)} facts")


def _bundled_record(options: argparse.Namespace) -> EditRecord:
    """What to edit in the bundled model, with everything it is judged by where the fact is known."""
    world = facts()
    if options.subject is None and options.relation is None:
        options.subject = DEFAULT_SUBJECT
        options.target_new = DEFAULT_TARGET if options.target_new is None else options.target_new
    chosen = _select(options, world)
    if options.relation and "{}" in options.relation:
        chosen = []
    if chosen:
        fact = chosen[0]
        others = [name for name in objects_of(fact.relation, world) if name != fact.object]
        return edit_record(
            fact, others[0] if options.target_new is None else options.target_new, world, seed=options.seed
        )
    if options.subject is None:
        raise ValueError(
            f"--subject is missing: --relation {options.relation!r} is a template of your own; expected a subject "
            "to put into it, e.g. --subject 'Eiffel Tower' --target-new Rome."
        )
    if options.relation is None:
        raise ValueError(
            f"no bundled fact has the subject {options.subject!r}; expected one that `python -m tl_edit --list-facts` "
            "shows, or a --relation and a --target-new of your own beside it."
        )
    relation = options.relation
    if "{}" not in relation:
        relation = relation_template(_find_relation(relation), article_of(options.subject, world))
    return _own_record(options, relation)


def _own_record(options: argparse.Namespace, relation: str | None) -> EditRecord:
    given = {"--subject": options.subject, "--relation": relation, "--target-new": options.target_new}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing; expected a subject, a template with one {{}} and an object, e.g. "
            "--subject 'The Space Needle' --relation '{} is in the city of' --target-new Paris."
        )
    return EditRecord(request=EditRequest(relation or "", options.subject, options.target_new))


def _texts(options: argparse.Namespace) -> list[str]:
    """Texts for the second moment: the user's file, or the bundled sentences."""
    if options.texts is None:
        return fact_texts(seed=options.seed)
    try:
        lines = options.texts.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--texts {options.texts}: {error}; expected a UTF-8 text file, one text per line.") from error
    return [line for line in lines if line.strip()]


def _load(options: argparse.Namespace) -> Any:
    """The bundled model, or a named one from TransformerLens."""
    if options.model in (None, MODEL_NAME):
        return load_fact_model()
    try:
        try:
            from transformer_lens import HookedTransformer  # pyright: ignore
        except ImportError:
            from transformer_lens.model_bridge import TransformerBridge

            return TransformerBridge.boot_transformers(options.model)
        return HookedTransformer.from_pretrained(options.model)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--model {options.model}: TransformerLens could not load it ({type(error).__name__}: {reason[:200]}); "
            "expected the name of a model that is on this machine or can be downloaded; check the name and the "
            "network, or leave --model out to use the bundled model."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
