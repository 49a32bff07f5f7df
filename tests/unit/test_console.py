import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from infnet_dist.io.console import COLUMNS_VARIABLE, Line, take_progress
from tests.terminal import run_on_terminal, seen

SCRIPT = """
import logging, sys
from infnet_dist.io.console import Line, end_progress, set_up_logging, show_progress
set_up_logging()
log = logging.getLogger("infnet_dist")
for step in range(1, 31):
    show_progress("train", "step", step, 40)
    if step % 10 == 0:
        log.info(Line(f"step {step}/40 (25 %)", "loss 0.6931", "12,345 samples/s", "00:12 left",
                      "input wait 3%"))
log.info(Line("valid at step 30", *(f"task{i} auc 0.7123 gauc 0.6543" for i in range(8))))
log.info(Line("saved /a/" + "long/" * 30 + "step-00000030 (1.2 MiB in 0.3 s)",
              short=("saved step-00000030", "1.2 MiB in 0.3 s")))
log.warning("%s", "a warning of many words " * 6 + "about /some/path/" + "x" * 20)
logging.getLogger("other").info("not shown")
log.setLevel(logging.WARNING)
assert not show_progress("quiet", "step", 1, 40)
log.setLevel(logging.INFO)
show_progress("valid", "batch", 1, 3)
end_progress()
print("the result")
"""


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (40, "step 5  loss 0.5  1,000 samples/s"),
        (33, "step 5  loss 0.5  1,000 samples/s"),
        (32, "step 5  loss 0.5  ..."),
        (20, "step 5  ..."),
        (9, "step 5..."),
        (7, "step..."),
    ],
)
def test_the_last_parts_of_a_line_are_left_out_first(width: int, text: str) -> None:
    line = Line("step 5", "loss 0.5", "1,000 samples/s")
    assert str(line) == "step 5  loss 0.5  1,000 samples/s"
    assert line.fit(width) == text


def test_short_parts_are_for_narrow_terminals_alone() -> None:
    line = Line("saved /long/path/step-5 (1 MiB)", short=("saved step-5", "1 MiB"))
    assert line.fit(80) == str(line) == "saved /long/path/step-5 (1 MiB)"
    assert line.fit(30) == "saved step-5  1 MiB"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_whole_lines_and_a_bar(columns: int, repository: Path) -> None:
    code, written = run_on_terminal([sys.executable, "-c", SCRIPT], columns, cwd=repository)
    assert code == 0
    lines, widest = seen(written)
    assert widest <= columns
    events = [line.split(" ", 1)[1] for line in lines if line[:2].isdigit()]
    assert [event.split()[0] for event in events] == ["step", "step", "step", "valid", "saved", "a"]
    assert events[0].startswith("step 10/40 (25 %)  loss 0.6931  12,345 samples/s  00:12 left")
    assert events[3].count("task") == (1 if columns == 80 else 3) and events[3].endswith("...")
    assert events[4] == "saved step-00000030  1.2 MiB in 0.3 s"
    warning = " ".join(" ".join(lines).split())
    assert ("a warning of many words " * 6 + "about /some/path/" + "x" * 20) in warning
    assert "train:" in written and "/40 [" in written and "step/s]" in written
    assert lines[-2:] == ["the result", ""], "nothing of the bar is left"
    assert not any("train:" in line for line in lines)
    assert "quiet" not in written


def test_a_file_holds_whole_lines_without_escapes(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=repository, capture_output=True, text=True, check=True
    )
    assert not {"\x1b", "\r"} & {*done.stderr, *done.stdout}
    lines = done.stderr.splitlines()
    assert len(lines) == 6 and "input wait 3%" in lines[0] and lines[3].count("task") == 8
    assert "/a/long/" in lines[4] and "train:" not in done.stderr


def test_progress_reaches_the_process_that_has_the_terminal(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are fitted to that terminal, and progress is among them, marked."""
    monkeypatch.setenv(COLUMNS_VARIABLE, "80")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=repository, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    shown = [line for line in lines if not take_progress(line)]
    assert len(shown) < len(lines)
    assert max(map(len, shown)) <= 80
    assert not take_progress("step 10/40")
    assert take_progress(lines[0][:-5]), "one that was cut off isn't shown either"


def test_a_run_outlives_its_terminal(repository: Path, tmp_path: Path) -> None:
    script = SCRIPT.replace(
        "for step",
        "import os, signal, time\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.write(1, b'started')\n"
        "time.sleep(0.5)\n"
        "for step",
        1,
    ).replace('print("the result")', f"open({str(tmp_path / 'ended')!r}, 'w')")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=repository, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    assert b"started" in os.read(ours, 100)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "ended").exists()
