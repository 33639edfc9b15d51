"""The command line."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

from tests.support.servers import AWS_VARIABLES, weed_server
from torturelib import report
from torturelib.run import MODES, Figures, torture

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def entry() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/torture",
        description="Load a mount from several threads while requests fail at random and its process is "
        "killed again and again, and compare every acknowledged byte. Uses an S3 server of its own, on "
        "loopback. Ends with status 1 if anything was lost.",
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of load, over all kinds of volume (3)")
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="SECONDS", help="more or less (30)")
    parser.add_argument("--seed", type=int, help="of all randomness; a new one if not given")
    parser.add_argument("--markdown", action="store_true", help=f"write the table into {PAGE.name}, too")
    options = parser.parse_args()
    seed: int = options.seed if options.seed is not None else random.randrange(10**6)
    for name in AWS_VARIABLES:
        os.environ.pop(name, None)
    total = _run(options.minutes, options.kill_every, seed)
    command = (
        f"scripts/torture --minutes {options.minutes:g} --kill-every {options.kill_every:g} --seed {seed}"
    )
    table = report.markdown(total, command)
    print(f"\n{table}")
    for line in (*(f"{loss.promise}: {loss.what}" for loss in total.losses), *total.unexpected):
        print(f"!! {line}", file=sys.stderr)
    if options.markdown:
        report.replace_table(PAGE, table)
    sys.exit(1 if total.losses or total.unexpected else 0)


def _run(minutes: float, kill_every_s: float, seed: int) -> Figures:
    total = Figures()
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-torture-server-"))
    try:
        with weed_server(directory) as server:
            for number, mode in enumerate(MODES):
                print(f"{mode}:", flush=True)
                bucket = f"torture-{uuid.uuid4().hex[:16]}"
                seconds = minutes * 60 / len(MODES)
                figures = torture(server, mode, bucket, seconds, kill_every_s, seed + 100 * number, _say)
                _say(f"{figures.kills} kills, {figures.bytes_written:,} bytes, {len(figures.losses)} losses")
                total.add(figures)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return total


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
