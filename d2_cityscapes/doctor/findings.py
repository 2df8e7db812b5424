"""What the doctor finds, and how it says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "as_json", "as_text", "problems"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        topic: what it belongs to: "software", "machine", "datasets" or "model".
        name: what was looked at.
        value: what was found, as text.
        remedy: what to do about it; "" where all is well.
    """

    topic: str
    name: str
    value: str
    remedy: str = ""


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Those with something to do."""
    return [finding for finding in findings if finding.remedy]


def as_text(findings: Sequence[Finding]) -> str:
    """All of it for the screen, by topic; a problem has its remedy below it."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines: list[str] = []
    for topic in dict.fromkeys(finding.topic for finding in findings):
        lines += [*([""] if lines else []), topic]
        for finding in findings:
            if finding.topic == topic:
                mark = "!" if finding.remedy else " "
                lines.append(f"{mark} {finding.name:<{width}}  {finding.value}")
                lines += [f"  {'':<{width}}  -> {finding.remedy}"] * bool(finding.remedy)
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for a bug report: {"problems": how many, "findings": [one object each]}."""
    return {
        "problems": len(problems(findings)),
        "findings": [asdict(finding) for finding in findings],
    }
