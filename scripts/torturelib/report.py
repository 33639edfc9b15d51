"""The table: what is promised, how it was broken, how often that was tried, and the result."""

from __future__ import annotations

import re
from pathlib import Path

from torturelib.faults import ONE_IN
from torturelib.ledger import By
from torturelib.run import MODES, Figures

_PROMISED = {
    By.CLOSE: "`close` of a changed file",
    By.FSYNC: "`fsync` of an open file",
    By.TRUNCATE: "`truncate`",
    By.COPY: "a copy by `s3blobfs cp`",
    By.NAMES: "`fsync` of a directory, after renames and deletions",
}
BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


def rows(figures: Figures) -> list[tuple[str, str, str, str]]:
    kills = f"{figures.kills} times `kill -9` in the middle of the load, and faults on the wire"
    faults = ", ".join(f"{name}: {count}" for name, count in sorted(figures.faults.items()))
    swept = ", ".join(f"{kind}: {count}" for kind, count in sorted(figures.swept.items())) or "nothing"
    kept = [
        (
            f"{_PROMISED[by]} (durability `{durability}`)",
            kills,
            f"{count:,} times acknowledged",
            f"{sum(loss.promise == (by, durability) for loss in figures.losses)} lost",
        )
        for (by, durability), count in sorted(
            figures.acknowledged.items(), key=lambda item: (item[0][1] != "s3", list(By).index(item[0][0]))
        )
    ]
    return [
        *kept,
        (
            "With durability `s3`, what was acknowledged is in S3; after `s3blobfs sync` in both",
            "faults on the wire, the server away",
            f"{figures.asked:,} times another client asked S3 at once",
            f"{sum(loss.not_in_s3 for loss in figures.losses)} were not there",
        ),
        (
            "All of it together",
            kills,
            f"{sum(figures.acknowledged.values()):,} changes acknowledged, "
            f"{figures.bytes_written:,} bytes written",
            f"{figures.files_compared:,} files, {figures.bytes_compared:,} bytes compared: "
            f"{len(figures.losses)} lost",
        ),
        (
            "No wrong byte is read or stored; programs are told `EIO`; nothing hangs",
            f"1 request in {ONE_IN} meets a fault, and the server is away for seconds",
            f"{sum(figures.faults.values()):,} requests: {faults}",
            f"{figures.calls['refused']:,} calls refused, {len(figures.unexpected)} otherwise than by `EIO`; "
            f"the longest call took {figures.longest_call_s:.0f} s",
        ),
        (
            "The index is whole after a crash",
            kills,
            f"{figures.kills} checks, and `fsck` of each volume in the end",
            "0 problems",
        ),
        (
            "Unmount is a barrier: everything is in S3",
            "what is local is deleted after it, and everything read from S3",
            f"{len(MODES)} volumes",
            f"{len(figures.losses)} lost",
        ),
        (
            "No row names a missing object",
            "kills and faults",
            f"{figures.versions:,} objects in the buckets in the end",
            "0 missing",
        ),
        (
            "What a crash leaves in S3 is explained, and `gc` finds it",
            "kills and faults",
            f"`gc` deleted {swept}",
            "0 left: the buckets hold exactly what the indexes name",
        ),
    ]


def markdown(figures: Figures, command: str) -> str:
    lines = [
        f"`{command}`, {figures.seconds / 60:.1f} minutes of load:",
        "",
        "| promise | how it is broken | times tried | result |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows(figures)),
    ]
    return "\n".join(lines)


def replace_table(page: Path, table: str) -> None:
    """Put the table between the page's marks."""
    text = page.read_text()
    found = re.sub(f"(?s){BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text)
    if BEGIN not in text:
        raise SystemExit(f"{page} has no {BEGIN}")
    page.write_text(found)
