"""A trial in a fresh process: started, listened to, told to stop, never left behind.

The process reads its work from a folder, reports values on its standard output, one JSON line each,
and reads after each on its standard input whether to go on. Its last word is outcome.json in the
folder: whole or not there, so that it can still be read when whoever started the process is gone.
When the input ends, so has the other side, and the process leaves at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import write_json
from d2_cityscapes.search.errors import SearchError

__all__ = ["Outcome", "Pruned", "Report", "TrialProcess", "read_outcome", "serve"]

# Called with step and value of a report; says whether to stop the trial here.
Report = Callable[[int, float], bool]

_OUTCOME = "outcome.json"
_OUTPUT = "output.txt"
_LEAVING = 10.0  # seconds that a process gets to end after its last word


class Pruned(BaseException):
    """Ends a trial that is not worth its time.

    No `Exception`: Detectron2's training loop logs those as failures.
    """


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: "complete", "pruned", "failed", "refused": no trial of this search can do better, or
            "interrupted": the process was killed.
        value: of the objective, where complete.
        reason: one line, where failed, refused or interrupted.
        results: whatever else the trial wants to be known.
    """

    state: str
    value: float | None = None
    reason: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)


def read_outcome(folder: Path) -> Outcome | None:
    """The last word of a trial; None where it has not been spoken."""
    try:
        return Outcome(**json.loads((folder / _OUTCOME).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class TrialProcess:
    """One trial, seen from the side that started it."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Start it.

        Args:
            command: gets the folder as its last argument, and calls `serve`.
            folder: with what the trial needs; output.txt receives all it prints.
            environment: of the process.
        """
        (folder / _OUTCOME).unlink(missing_ok=True)
        self._folder = folder
        with open(folder / _OUTPUT, "ab") as output:
            self._process = subprocess.Popen(
                [*command, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for the search, which then ends its trials
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, report: Report) -> Outcome:
        """Pass reports on until the process ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "report" not in message:  # its last one
                break
            reply = json.dumps({"prune": report(*message["report"])})
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(reply + "\n")
                self._process.stdin.flush()
        outcome = read_outcome(self._folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVING)
        self.kill()  # what is left of it
        code = self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        if outcome is not None:
            return outcome
        if code < 0:
            return Outcome("interrupted", reason=f"killed by {signal.Signals(-code).name}")
        return Outcome("failed", reason=f"exit code {code}: {_last_line(self._folder / _OUTPUT)}")

    def kill(self) -> None:
        """End the process and those that it started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def serve(run: Callable[[Path, Report], tuple[float, Mapping[str, Any]]]) -> None:
    """The side of the process: run a trial and leave its outcome in the folder.

    Args:
        run: gets the folder of the command line and a function for its reports; returns the value
            of the objective and results. `Pruned` is a way to end, a SearchError refuses, other
            exceptions are failures.
    """
    folder = Path(sys.argv[1])
    send, replies = _connect()

    def report(step: int, value: float) -> bool:
        send({"report": [step, float(value)]})
        return replies.get()["prune"]

    try:
        value, results = run(folder, report)
        outcome = (
            Outcome("complete", float(value), results=results)
            if math.isfinite(value)
            else Outcome("failed", reason=f"the objective is {value}")
        )
    except Pruned:
        outcome = Outcome("pruned")
    except SearchError as error:
        outcome = Outcome("refused", reason=str(error))
    except D2CityscapesError as error:
        outcome = Outcome("failed", reason=str(error))
    except Exception as error:
        traceback.print_exc()
        first = next(iter(str(error).strip().splitlines()), "")
        outcome = Outcome("failed", reason=f"{type(error).__name__}: {first}".rstrip(": "))
    write_json(folder / _OUTCOME, asdict(outcome))
    send({"done": True})


def _connect() -> tuple[Callable[[dict], None], queue.Queue[dict]]:
    """Take standard input and output for the conversation; what is printed goes to standard error.

    Returns:
        A function that sends a message, and the queue of the replies.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    replies: queue.Queue[dict] = queue.Queue()
    threading.Thread(target=_listen, args=(replies,), daemon=True).start()

    def send(message: dict) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(message), file=channel, flush=True)

    return send, replies


def _listen(replies: queue.Queue[dict]) -> None:
    for line in sys.stdin:
        replies.put(json.loads(line))
    # Whoever started this is gone: leave, with all children, or who comes next finds them at work.
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"
