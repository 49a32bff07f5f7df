"""The `infnet` command: `infnet VERB ...` runs a verb's entry point in this process.

`python -m ray_jobs.VERB` runs the same, which is what a cluster is given (`ray job submit -- python
-m ray_jobs.train ...`). Only the verb's module is imported, so that `infnet doctor` works where
everything else is broken.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from infnet_dist import __version__
from infnet_dist.errors import unknown_name
from ray_jobs._forkserver import start_forkserver
from ray_jobs._verbs import VERBS, parse, set_up

_WIDTH = max(map(len, VERBS))
_OWN_ERRORS = ("checkpoint", "doctor")  # they print their errors themselves, and import little


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code, or ends the process with it."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] not in VERBS:
        return _without_verb(words)
    verb, rest = words[0], words[1:]
    arguments = parse(verb, rest)  # --help and wrong options end here, before any slow import
    if getattr(arguments, "launcher", None) == "local":
        start_forkserver(VERBS[verb].module)  # imports what workers need while we import it too
    module = importlib.import_module(VERBS[verb].module)
    if verb in _OWN_ERRORS:
        return int(module.main(rest))
    from ray_jobs._cli import run_main

    run_main(module.main, rest)
    return 0


def _without_verb(words: Sequence[str]) -> int:
    """Answer --help, --version and --completion; a wrong verb ends with code 2."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.completion:
        print(_completion(arguments.completion))
        return 0
    if arguments.verb is None:
        parser.error("expected a VERB; see infnet --help")
    parser.error(unknown_name("verb", arguments.verb, list(VERBS)))


def _parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {name:{_WIDTH}}  {verb.summary}" for name, verb in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="infnet",
        usage="infnet VERB ...",
        description="Sharded training of INFNet ranking models. Verbs, in the order of a day:\n\n"
        f"{verbs}\n\ninfnet VERB --help shows a verb's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--completion",
        choices=("bash", "zsh", "fish"),
        help='print a completion script: eval "$(infnet --completion bash)"',
    )
    return parser


def _completion(shell: str) -> str:
    """The script that completes verbs, options and files."""
    import shtab

    parser = argparse.ArgumentParser(prog="infnet")
    commands = parser.add_subparsers()
    for name, verb in VERBS.items():
        set_up(commands.add_parser(name, help=verb.summary), name)
    _complete_files(parser, shtab.FILE)
    return str(shtab.complete(parser, shell=shell))


def _complete_files(parser: argparse.ArgumentParser, files: dict[str, str]) -> None:
    """Complete files where an option takes a path, in sub-commands too."""
    for action in parser._actions:
        if action.type is Path:
            action.complete = files  # type: ignore[attr-defined]
        if isinstance(action.choices, dict):
            for inner in action.choices.values():
                _complete_files(inner, files)


if __name__ == "__main__":
    sys.exit(main())
