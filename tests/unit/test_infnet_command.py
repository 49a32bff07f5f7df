"""The `infnet` command: its verbs, their help, completion and exit codes."""

import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from infnet_dist.errors import UserError
from ray_jobs import __main__ as infnet
from ray_jobs._cli import StoppedError, exit_code
from ray_jobs._verbs import VERBS, parse, parser_of

OF_JOBS = {name for name, verb in VERBS.items() if verb.module.startswith("ray_jobs.")}


def test_every_entry_point_is_a_verb(repository: Path) -> None:
    modules = {path.stem for path in (repository / "ray_jobs").glob("[a-z]*.py")}
    assert modules == OF_JOBS
    assert set(VERBS) - OF_JOBS == {"checkpoint", "doctor"}
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"infnet": "ray_jobs.__main__:main"}


def test_help_shows_the_verbs_in_the_order_of_a_day(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        infnet.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line.split()]
    assert [word for word in shown if word in VERBS] == list(VERBS)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_its_help_with_an_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        infnet.main([verb, "--help"])
    text = capsys.readouterr().out
    assert f"usage: infnet {verb} " in text
    assert f"examples:\n  infnet {verb} " in text
    for line in VERBS[verb].examples.splitlines():
        parse(verb, line.split())


def test_a_wrong_verb_or_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, named in (
        (["trian"], "'train'"),
        ([], "VERB"),
        (["--no-such"], "--no-such"),
        (["train", "--config", "x", "--st", "y"], "--st"),
        (["train"], "--config"),
    ):
        with pytest.raises(SystemExit, match="2"):
            infnet.main(words)
        assert named in capsys.readouterr().err


def test_help_imports_nothing_slow() -> None:
    """Nor what a broken installation breaks, which the doctor is for."""
    code = (
        "import sys; sys.argv[1:] = ['train', '--help']\n"
        "from ray_jobs.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print('slow:', {n.split('.')[0] for n in sys.modules} & "
        "{'torch', 'torchrec', 'ray', 'pydantic', 'yaml', 'numpy', 'pyarrow', 'rich', 'tqdm'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "slow: set()"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert infnet.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    options = {
        option
        for verb in VERBS
        for action in parser_of(verb)._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    for name in [*VERBS, "verify", "whatif", *(option[2:] for option in options)]:
        assert name in script


def test_completion_works_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infnet.main(["--completion", "bash"])
    (tmp_path / "infnet.bash").write_text(capsys.readouterr().out)
    lines = [". ./infnet.bash"]
    for words in ("infnet tr", "infnet train --r", "infnet plan wh", "infnet train --launcher l"):
        lines += [
            f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()",
            f"_shtab_infnet infnet {words.split()[-1]}; echo ${{COMPREPLY[@]}}",
        ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["train", "--run-id", "whatif", "local"]


@pytest.mark.parametrize(
    ("raised", "code", "last"),
    [
        (None, 0, ""),
        (7, 7, ""),
        (UserError("bad key x"), 1, "error: bad key x"),
        (StoppedError("stopped by SIGTERM", 143), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (KeyError("x"), 1, "error: KeyError: 'x'"),
    ],
)
def test_exit_codes(
    raised: object, code: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int | None:
        assert argv == ["a"]
        if isinstance(raised, BaseException):
            raise raised
        return raised  # type: ignore[return-value]

    assert exit_code(main, ["a"]) == code
    assert capsys.readouterr().err.splitlines()[-1:] == ([last] if last else [])


@pytest.mark.parametrize("verb", VERBS)
def test_main_takes_arguments_in_process(verb: str) -> None:
    module = importlib.import_module(VERBS[verb].module)
    with pytest.raises(SystemExit, match="2"):
        module.main(["--no-such-option"])


def test_exit_codes_pass_through_processes(tmp_path: Path) -> None:
    runs = {
        ("ray_jobs", "ingest", "--config", "none.yaml"): 1,
        ("ray_jobs.ingest", "--config", "none.yaml"): 1,
        ("ray_jobs.ingest",): 2,
        ("ray_jobs", "checkpoint", "list", "none"): 1,
        ("infnet_dist.checkpoint", "list", "none"): 1,
    }
    started = {
        words: subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in runs
    }
    for words, process in started.items():
        error = process.communicate()[1]
        assert process.returncode == runs[words], (words, error)
        assert "error: " in error.splitlines()[-1]
