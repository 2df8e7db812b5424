"""A trial's process: reports, last words, and that it never outlives whoever started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from d2_cityscapes.search.trials.process import Outcome, TrialProcess, read_outcome


@pytest.fixture
def start(tmp_path):
    """Start a process whose ``run(folder, report)`` has the given lines."""

    def make(body: str) -> TrialProcess:
        script = tmp_path / "script.py"
        script.write_text(
            "import os, signal, sys, time\n"
            "os.environ['D2_CITYSCAPES_PLAIN'] = '1'\n"
            "from d2_cityscapes.errors import D2CityscapesError\n"
            "from d2_cityscapes.search.errors import SearchError\n"
            "from d2_cityscapes.search.trials.process import Pruned, serve\n"
            "def run(folder, report):\n"
            + textwrap.indent(textwrap.dedent(body), "    ")
            + "\nserve(run)\n"
        )
        folder = tmp_path / "trial"
        folder.mkdir()
        return TrialProcess([sys.executable, str(script)], folder, os.environ)

    return make


def _nothing(step: int, value: float) -> bool:
    raise AssertionError("no report was expected")


def test_reports_and_an_outcome(start, tmp_path):
    process = start(
        """
        print("on standard output")
        print("on standard error", file=sys.stderr)
        os.system("echo from a child")
        assert not report(1, 0.25)
        assert not report(2, 0.5)
        return 0.75, {"AP": 3.0}
        """
    )
    seen = []
    outcome = process.wait(lambda *report: bool(seen.append(report)))
    assert seen == [(1, 0.25), (2, 0.5)]
    assert outcome == Outcome("complete", 0.75, results={"AP": 3.0})
    assert read_outcome(tmp_path / "trial") == outcome
    output = (tmp_path / "trial" / "output.txt").read_text()
    assert all(line in output for line in ("standard output", "standard error", "from a child"))


def test_a_report_can_end_it(start):
    process = start(
        "for step in (1, 2, 3):\n    if report(step, 0.5): raise Pruned\nreturn 1.0, {}"
    )
    assert process.wait(lambda step, value: step == 2) == Outcome("pruned")


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise D2CityscapesError('no shards')", Outcome("failed", reason="no shards")),
        ("raise SearchError('inert')", Outcome("refused", reason="inert")),
        ("raise ValueError('two\\nlines')", Outcome("failed", reason="ValueError: two")),
        ("1 / 0", Outcome("failed", reason="ZeroDivisionError: division by zero")),
        ("return float('nan'), {}", Outcome("failed", reason="the objective is nan")),
        ("print('last words'); sys.stdout.flush(); os._exit(3)",
         Outcome("failed", reason="exit code 3: last words")),
        ("os.kill(os.getpid(), signal.SIGKILL)",
         Outcome("interrupted", reason="killed by SIGKILL")),
    ],
)  # fmt: skip
def test_how_it_can_fail(start, body, outcome):
    assert start(body).wait(_nothing) == outcome


def test_it_can_be_killed(start, tmp_path):
    process = start("report(1, 0.0)\ntime.sleep(60)\nreturn 0.0, {}")
    assert process.wait(lambda *_: bool(process.kill())).state == "interrupted"
    assert read_outcome(tmp_path / "trial") is None


def test_what_it_leaves_behind_does_not_hold_it_up(start):
    """A child of the process that holds its output open."""
    started = time.monotonic()
    process = start("import subprocess; subprocess.Popen(['sleep', '60'])\nreturn 1.0, {}")
    assert process.wait(_nothing).state == "complete"
    assert time.monotonic() - started < 30


def test_an_old_outcome_is_not_a_new_one(start, tmp_path):
    folder = tmp_path / "trial"
    process = start("return 1.0, {}")
    process.wait(_nothing)
    again = TrialProcess([sys.executable, "-c", "raise SystemExit(2)"], folder, os.environ)
    assert again.wait(_nothing).state == "failed"


def test_it_ends_with_whoever_started_it(tmp_path):
    """kill -9 of the parent: the trial and its own children are gone at once."""
    trial = tmp_path / "trial.py"
    trial.write_text(
        "import os; os.environ['D2_CITYSCAPES_PLAIN'] = '1'\n"
        "import subprocess, time\n"
        "from d2_cityscapes.search.trials.process import serve\n"
        "def run(folder, report):\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "    (folder / 'pids.new').write_text(f'{os.getpid()} {child.pid}')\n"
        "    os.rename(folder / 'pids.new', folder / 'pids')\n"
        "    time.sleep(60)\n"
        "serve(run)\n"
    )
    parent = subprocess.Popen(
        [
            sys.executable, "-c",
            "import os, sys; os.environ['D2_CITYSCAPES_PLAIN'] = '1'\n"
            "from pathlib import Path\n"
            "from d2_cityscapes.search.trials.process import TrialProcess\n"
            f"process = TrialProcess([sys.executable, {str(trial)!r}], "
            f"Path({str(tmp_path)!r}), os.environ)\n"
            "process.wait(lambda *_: False)",
        ]
    )  # fmt: skip
    _until(lambda: (tmp_path / "pids").exists())
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _until(lambda: not any(map(_runs, pids)))


def test_half_an_outcome_is_none(tmp_path):
    assert read_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_text(json.dumps({"state": "complete"})[:-3])
    assert read_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_text('{"other": 1}')
    assert read_outcome(tmp_path) is None


def _until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie, which waits for init to look after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
