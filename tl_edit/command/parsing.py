"""Reading a command line: paths, lists, and what a parser says of what it does not know."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

CODES = (
    "exit codes: 0, all went well; 1, an edit did not take (of several: for more than half of the requests), or the "
    "weights were not restored; 2, the input cannot be used, or the output not be written; 130, stopped with Ctrl-C"
)
"""What every help ends with."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses what it does not know itself, with its own usage, and says what is meant instead."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None, *, refuse: bool = True
    ) -> Any:
        """As argparse does, but of a command's options the command's own parser complains."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and refuse:
            self.refuse(unknown)
        return found, unknown

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Say what is not known, and what may be meant by it; exit code 2."""
        advice = [self._meant(word) for word in unknown if word.startswith("--")]
        self.error("; ".join([f"not known here: {' '.join(unknown)}", *filter(None, advice)]))

    def error(self, message: str) -> NoReturn:
        """The usage, the message, and where the help is; exit code 2."""
        super().error(f"{message}; all options: {self.prog} --help")

    def _meant(self, word: str) -> str:
        """What an unknown option may stand for; "" if nothing is like it."""
        option = word.split("=")[0]
        near = difflib.get_close_matches(option, _options(self), 1)
        if near:
            return f"did you mean {near[0]}?"
        below = [name for name, parser in commands_of(self).items() if option in _options(parser)]
        return f"{option} stands behind {' or '.join(below)}, whose option it is" if below else ""


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """A parser's commands by name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if isinstance(action.choices, dict):
            found |= cast(dict[str, argparse.ArgumentParser], action.choices)
    return found


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return list(parser._option_string_actions)  # pyright: ignore[reportPrivateUsage]


class Several(argparse.Action):
    """An option with several values, which stand apart or with commas between."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Join what `names` or `numbers` made of each."""
        setattr(namespace, self.dest, [each for part in values for each in part])


def names(text: str) -> list[str]:
    """``a,b`` as two names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """``0,1`` as two whole numbers.

    Raises:
        argparse.ArgumentTypeError: If a part is none.
    """
    try:
        return [int(part) for part in names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, nor several with commas between") from error


def path(text: str) -> str:
    """A path, or a name that stands for one; "~" is the user's home."""
    return os.path.expanduser(text)


def folder_or_file(text: str) -> Path:
    """The same as a `Path`."""
    return Path(path(text))


def given(options: argparse.Namespace, option: str) -> Any:
    """The value of an option by its name, None where the command has none such."""
    return getattr(options, option.strip("-").replace("-", "_"), None)


def either(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
