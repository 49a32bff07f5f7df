"""Pieces of command lines; with the standard library alone, so that --help is quick."""

import argparse

_EXAMPLES = "examples:"


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs, and keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLES):
            return text
        paragraphs = text.split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in paragraphs)


def examples(command: str, lines: str) -> str:
    """The epilog that shows how a command is used.

    Args:
        command: program and verb, e.g. `infnet train`.
        lines: arguments, one example per line.
    """
    return _EXAMPLES + "".join(f"\n  {command} {line}" for line in lines.splitlines())


def positive(text: str) -> int:
    """Type of options that count something."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer >= 1")
    return int(text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
