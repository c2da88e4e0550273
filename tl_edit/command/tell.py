"""Without a command: a fact's whole story, or a list of the bundled facts."""

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

import tl_edit
from tl_edit.command.bundled import DEFAULT_SUBJECT, bundled_record, own_record, select
from tl_edit.command.checks import check
from tl_edit.command.models import is_bundled, load_model
from tl_edit.command.parsing import CODES, Parser, folder_or_file, path
from tl_edit.counted import counted
from tl_edit.factworld import RELATIONS, fact_texts, facts
from tl_edit.story import Story, save_story


def parser(commands: str) -> Parser:
    """Its options; ``commands`` are named below them."""
    found = Parser(
        prog="python -m tl_edit",
        description="Locate a fact in a language model, edit it with ROME, see what changed, and take it back.",
        epilog="Examples: python -m tl_edit --subject 'Miles Davis' --target-new opera   |   python -m tl_edit --model "
        "gpt2-medium --subject 'The Space Needle' --relation '{} is in the city of' --target-new Rome --texts wiki.txt"
        f"   |   Commands, each with a --help of its own: {commands}   |   {CODES}",
    )
    found.add_argument("--subject", help=f"what the fact is about (default: {DEFAULT_SUBJECT})")
    found.add_argument(
        "--relation",
        help="template with one {} for the subject, or for the bundled model a relation's "
        "name or id, such as 'place of birth' or P19",
    )
    found.add_argument("--target-new", help="the object to write (default: another object of the same relation)")
    found.add_argument(
        "--model",
        type=path,
        help="any model that TransformerLens can load, or its folder (default: the bundled one, offline)",
    )
    found.add_argument("--layer", type=int, help="layer to edit (default: the published one for the model)")
    found.add_argument("--seed", type=int, default=0, help="seed of prefixes, texts and fillers (default: 0)")
    found.add_argument(
        "--texts",
        type=folder_or_file,
        help="a text file, one text per line, for the second moment of another "
        "model's keys (default: the bundled sentences, a poor sample for a large model)",
    )
    found.add_argument("--html", type=path, metavar="FILE", help="also write the story as one page, with more pictures")
    found.add_argument(
        "--list-facts",
        action="store_true",
        help="list the bundled facts (with --subject or --relation: only those) and exit",
    )
    found.add_argument("--version", action="version", version=f"tl_edit {tl_edit.__version__}")
    return found


def run(options: argparse.Namespace) -> int:
    """Tell it; the exit code.

    Raises:
        ValueError: If the options cannot be used.
    """
    console = Console(highlight=False)
    if options.relation is not None and not options.relation.strip():
        raise ValueError(
            "--relation is empty; expected a template such as '{} is in the city of', or for the bundled model a "
            "relation's name; leave it out for any relation."
        )
    texts = _texts(options)
    check(options)
    if options.list_facts:
        _list_facts(console, options)
        return 0
    record = bundled_record(options) if is_bundled(options.model) else own_record(options, options.relation)
    model = load_model(options.model, processing=True)
    story = Story(model, console, layer=options.layer, seed=options.seed, texts=texts)
    told = story.tell(record)
    if options.html is not None:
        save_story(options.html, model, told, texts)
        console.print(f"\nThe same with more pictures: {options.html}", soft_wrap=True)
    return 0 if told.took and told.restored else 1


def _list_facts(console: Console, options: argparse.Namespace) -> None:
    chosen = select(options, facts())
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
    console.print(counted(len(chosen), "fact"))


def _texts(options: argparse.Namespace) -> Sequence[str]:
    """Texts for the second moment: the user's file, or the bundled sentences."""
    if options.texts is None:
        return fact_texts(seed=options.seed)
    try:
        lines = options.texts.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--texts {options.texts}: {error}; expected a UTF-8 text file, one text per line.") from error
    return [line for line in lines if line.strip()]
