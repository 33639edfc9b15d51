"""Random names out of a trace: what differs from run to run gets the name the diagrams use."""

from __future__ import annotations

import re

DIGESTS = {
    "acbd18db4cc2f85cedef654fccc4a4d8",  # md5 of b"foo"
    "37b51d194a7513e45b56f6524f2d51f2",  # md5 of b"bar"
}
"""Names that are the same in every run."""


def normalised(trace: str) -> list[str]:
    """The lines of a trace with temporary names, object ids and version ids replaced by ``${TMP1}``,
    ``${TMP1a}``, ``id1``, ``${VERSION1}`` …, numbered in the order of their first appearance."""
    return _Normaliser().lines(trace.splitlines())


class _Normaliser:
    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._counts = {"TMP": 0, "id": 0, "VERSION": 0}

    def lines(self, lines: list[str]) -> list[str]:
        self._learn(lines)
        return [self._replaced(line) for line in lines]

    def _learn(self, lines: list[str]) -> None:
        """Find every random name by the step it appears in."""
        step = ""
        for line in lines:
            note = re.fullmatch(r" {32}hnote right(?: of \w+)?: (.*)", line)
            if note is None:
                step = line
                if version := re.fullmatch(r".* <-- S3: v=(.+)", line):
                    self._name(version[1], "VERSION")
            elif temporary := re.fullmatch(r"bin_(.+)\.tmp", note[1]):
                self._name(temporary[1], "TMP")
            elif step.endswith("Cache: rename"):
                if "@" not in note[1] and note[1] not in DIGESTS:
                    self._names[note[1]] = f"${{TMP{self._counts['TMP']}a}}"
            elif re.search(r" S3: write ", step):
                object_id = note[1].rpartition("/")[2]
                if object_id not in DIGESTS:
                    self._name(object_id, "id")
            elif step.endswith("S3: copyObject") and " v=" in note[1]:
                self._name(note[1].rpartition("/")[2], "id")

    def _name(self, found: str, kind: str) -> None:
        if found not in self._names:
            self._counts[kind] += 1
            number = self._counts[kind]
            self._names[found] = f"id{number}" if kind == "id" else f"${{{kind}{number}}}"

    def _replaced(self, line: str) -> str:
        for found in sorted(self._names, key=len, reverse=True):
            line = line.replace(found, self._names[found])
        return line
