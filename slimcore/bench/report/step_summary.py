"""The report in the summary of a GitHub job, which holds a mebibyte a step: of a step with more, nothing is shown."""

from __future__ import annotations

import os
from pathlib import Path

ROOM = 900_000  # bytes


def append(report: Path) -> None:
    """Append the report to the file $GITHUB_STEP_SUMMARY, where that is set; not what is in it already."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return
    summary = Path(place)
    before = summary.read_text(encoding="utf-8") if summary.exists() else ""
    text = _cut(report, ROOM)
    if text not in before:
        with summary.open("a", encoding="utf-8") as file:
            file.write(_cut(report, ROOM - len(before.encode())))


def _cut(report: Path, room: int) -> str:
    """The report; of one larger than `room` bytes the lines that fit, and where the whole is."""
    whole = report.read_bytes()
    if len(whole) <= room:
        return whole.decode()
    last = (
        f"\nCut here: this report has {len(whole):,} bytes, GitHub shows {ROOM:,}. All is in {report}{_artifacts()}\n"
    )
    kept = whole[: max(0, room - len(last.encode()))]
    return kept[: kept.rfind(b"\n") + 1].decode() + last


def _artifacts() -> str:
    """Where GitHub keeps what this job uploads."""
    parts = [os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    return ", of {}/{}/actions/runs/{}".format(*parts) if all(parts) else ""
