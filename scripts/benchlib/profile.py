"""Where a mount's time goes while a row is measured: sampled by py-spy, summed up by layer and by task.

A sample is the thread that has the interpreter's lock at one moment. What the other threads do without it
(S3, digests, the disk) is not seen; what waits is not either.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from benchlib.targets import Target
from benchlib.volume import Volume

_SAMPLES_PER_S = 400
_STARTED = "Sampling process"
_END_TIMEOUT_S = 60.0
_FRAME = re.compile(r"(?P<function>\S+) \((?P<file>[^():]+)(?::\d+)?\)$")
_TASKS = {
    "fuse/operations.py": "request {function}",
    "fuse/extension/eager.py": "the kernel's requests: waiting, reading",
    "fuse/extension/unbound.py": "request of the extension",
    "writeback/uploader.py": "uploading",
    "writeback/reaper.py": "deleting",
    "replica/shipper.py": "copying the index",
}
"""What is done, by the outermost of these frames."""
_NO_TASK = "event loop, threads"
_WRAPPER = re.compile(r"<locals>|^_")


class Profiler:
    """Samples volumes; one file of stacks for each row and volume in ``directory``."""

    def __init__(self, directory: Path) -> None:
        """:class:`click.UsageError` without py-spy."""
        if shutil.which("py-spy") is None:
            raise click.UsageError("--profile needs py-spy: pip install py-spy")
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._paths: list[Path] = []

    @contextlib.contextmanager
    def sampling(self, target: Target, row: str, number: int) -> Iterator[None]:
        """While this lasts a volume is sampled; other targets are not."""
        if not isinstance(target, Volume):
            yield
            return
        path = self._directory / f"{row}-{target.name}-{number}.stacks"
        process = subprocess.Popen(
            ["py-spy", "record", f"--pid={target.pid}", f"--rate={_SAMPLES_PER_S}", "--format=raw",
             "--duration=unlimited", "--gil", f"--output={path}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if _STARTED in line:
                    break
            else:
                raise click.ClickException(f"py-spy: {''.join(said).strip()}")
            yield
        finally:
            process.send_signal(signal.SIGINT)  # as Ctrl-C: it writes what it has
            with process.stdout:
                process.stdout.read()
            process.wait(_END_TIMEOUT_S)
        self._paths.append(path)

    def write_shares(self) -> None:
        """``shares.md``: tables for each file of stacks."""
        tables = (f"## {path.stem}\n\n{Shares.of(path.read_text()).markdown()}\n" for path in self._paths)
        (self._directory / "shares.md").write_text("\n".join(tables))


@dataclass(frozen=True)
class Shares:
    """Samples by where the innermost frame belongs, and by what it was done for."""

    layers: Counter[str]
    tasks: Counter[str]

    @staticmethod
    def of(stacks: str) -> Shares:
        """From py-spy's raw format: frames from the outermost on, joined by ``;``, then the number."""
        layers: Counter[str] = Counter()
        tasks: Counter[str] = Counter()
        for line in stacks.splitlines():
            joined, _, count = line.rpartition(" ")
            frames = [found for frame in joined.split(";") if (found := _FRAME.search(frame))]
            if not frames:
                continue
            layers[_layer(frames[-1]["file"])] += int(count)
            tasks[next((task for frame in frames if (task := _task(frame))), _NO_TASK)] += int(count)
        return Shares(layers, tasks)

    def markdown(self) -> str:
        return "\n\n".join(_table(title, counts) for title, counts in (
            ("where", self.layers), ("for what", self.tasks)
        ))  # fmt: skip


def _layer(file: str) -> str:
    """``s3blobfs/fs/writing.py`` belongs to ``s3blobfs.fs``; what others made, to its package."""
    parts = file.removesuffix(".py").split("/")
    return ".".join(parts[: 2 if parts[0] == "s3blobfs" else 1])


def _task(frame: re.Match[str]) -> str | None:
    name = _TASKS.get(frame["file"].removeprefix("s3blobfs/"))
    function = frame["function"].rpartition(".")[2]
    if name is None or ("{" in name and _WRAPPER.search(frame["function"])):
        return None
    return name.format(function=function)


def _table(title: str, counts: Counter[str]) -> str:
    whole = counts.total()
    rows = [
        f"| {name} | {count / whole:.0%} |" for name, count in counts.most_common() if count * 100 >= whole
    ]
    return "\n".join([f"| {title} | share of {whole} samples |", "|---|---:|", *rows])
