"""Options that several commands have, under the same names everywhere."""

import argparse
import textwrap
from typing import Any

from tl_edit.command.models import DTYPES
from tl_edit.command.parsing import CODES, Several, folder_or_file, numbers, path

MODEL_HELP = (
    "a model's name in TransformerLens, or a folder with a Hugging Face model and its tokenizer (one that is called as "
    "the model, e.g. gpt2-xl, gets its published settings); default: the bundled model, offline"
)


def parent() -> argparse.ArgumentParser:
    """A parser to inherit from."""
    return argparse.ArgumentParser(add_help=False, allow_abbrev=False)


def model_options(*, seed: int = 0) -> argparse.ArgumentParser:
    """What model, and how it is asked."""
    parser = parent()
    group = parser.add_argument_group("model")
    group.add_argument("--model", type=path, metavar="NAME", help=MODEL_HELP)
    group.add_argument("--device", help="e.g. cpu, cuda, cuda:1, mps (default: a GPU where TransformerLens finds one)")
    group.add_argument("--dtype", choices=DTYPES, help="of the weights (default: float32)")
    group.add_argument(
        "--prepend-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether prompts begin with a BOS (default: the model's own habit; the papers' numbers are without)",
    )
    group.add_argument("--seed", type=int, default=seed, metavar="N", help=f"seed of every draw (default: {seed})")
    return parser


def output_options() -> argparse.ArgumentParser:
    """What is printed."""
    parser = parent()
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        action="store_true",
        help="exactly one JSON object on standard output; its probabilities and rates are from 0 to 1, where tables "
        "have rates in per cent",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def edit_options() -> argparse.ArgumentParser:
    """Where edits go, and the second moments that they are solved with."""
    parser = parent()
    group = parser.add_argument_group("edits")
    group.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="layer of ROME and its variants, counted from 0 (default: the published one); methods for several layers "
        "edit it alone, unless --layers names theirs",
    )
    group.add_argument(
        "--layers",
        type=numbers,
        action=Several,
        nargs="+",
        metavar="N",
        help="layers of MEMIT and its relatives (default: the published ones)",
    )
    group.add_argument(
        "--moments",
        nargs="+",
        type=folder_or_file,
        metavar="PATH",
        help="second moments: a folder of SecondMoments.save, or published .npz files; layers that a single folder "
        "lacks are measured and kept in it, also in an empty or a new one",
    )
    group.add_argument(
        "--texts",
        type=path,
        metavar="FILE",
        help="texts to measure second moments of: a file, one text per line; wikipedia (100,000 of its texts, as "
        "published); or pile (default: the bundled sentences, a poor sample for any other model)",
    )
    group.add_argument(
        "--max-tokens", type=int, metavar="N", help="measure on the first N tokens; ten times d_mlp is a fair start"
    )
    group.add_argument(
        "--ridge",
        type=float,
        metavar="X",
        help="solve with X times the mean square of the keys on the moments' diagonal (default: what the files say, "
        "none where measured)",
    )
    return parser


def record_options(default: str = "bundled") -> argparse.ArgumentParser:
    """Which records."""
    parser = parent()
    group = parser.add_argument_group("records")
    group.add_argument(
        "--records",
        type=path,
        metavar="FILE",
        help="records to edit and judge: a file (.json, .jsonl, .csv), a published data set (counterfact, "
        f"multi_counterfact, zsre), or bundled (default: {default})",
    )
    group.add_argument("--limit", type=int, metavar="N", help="take the first N (default: all)")
    group.add_argument(
        "--snippets", type=path, metavar="FILE", help="attribute_snippets.json, the texts behind RS and EP"
    )
    return parser


def judge_options() -> argparse.ArgumentParser:
    """What is measured."""
    parser = parent()
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--distracted", action="store_true", help="also neighborhood prompts behind the edited statement (CounterFact+)"
    )
    group.add_argument("--kl", action="store_true", help="also how far the next token's distribution moves there")
    group.add_argument(
        "--perplexity", type=path, metavar="FILE", help="also the perplexity of these texts, edited over unedited"
    )
    generate_options(group)
    group.add_argument("--batch-size", type=int, default=128, metavar="N", help="rows per forward pass (default: 128)")
    return parser


def generate_options(group: Any) -> None:
    """Of generated texts."""
    group.add_argument(
        "--generate",
        type=int,
        nargs="?",
        const=True,
        metavar="N",
        help="also let the model write texts of N tokens (without a number: 100, as published, or what the model's "
        "context holds), for GE, and with --tfidf for RS",
    )
    group.add_argument(
        "--tfidf", type=path, metavar="FOLDER", help="folder with idf.npy and tfidf_vocab.json, for the published RS"
    )


def describe(parser: argparse.ArgumentParser, *examples: str, elsewhere: str = "") -> None:
    """Put examples below a command's help: some that work as they are, and one for a user's own weights and data."""
    lines = ["example:" if len(examples) == 1 else "examples:", *(f"  {example}" for example in examples)]
    if elsewhere:
        lines += ["with weights and data of your own:", f"  {elsewhere}"]
    parser.epilog = "\n".join([*lines, textwrap.fill(CODES, 78)])
    parser.description = textwrap.fill(parser.description or "", 78)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
