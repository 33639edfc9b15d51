"""The tracer: what the filesystem did to the local tier and to S3, step by step, and how often.

Two things come out of one set of calls:

* *counts* (always on, a dictionary increment each): index transactions and S3 requests by kind. The
  request budgets of ``docs/architecture.md`` are tests over these counts.
* *steps* (when a sink is attached): sequence diagrams in PlantUML's grammar, one line per step and one
  ``hnote`` line for its subject, as ``docs/semantics.md`` and the tests' fixtures show them.

A tracer never sees content, credentials or signed URLs: only names, keys, versions and sizes.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable


class Count(enum.Enum):
    """What is counted. The value is the name shown by ``s3blobfs status``."""

    INDEX_READ = "index.read"
    INDEX_WRITE = "index.write"
    INDEX_COMMIT = "index.commit"
    S3_PUT = "s3.put"
    S3_PART = "s3.part"
    """One part of a multipart upload (its create and complete are not counted apart)."""
    S3_GET = "s3.get"
    S3_HEAD = "s3.head"
    S3_COPY = "s3.copy"
    S3_DELETE = "s3.delete"
    S3_DELETE_BATCH = "s3.delete_batch"
    S3_LIST = "s3.list"
    S3_TAG = "s3.tag"
    """The tags of an object, written or read."""
    S3_CONTROL = "s3.control"
    S3_RETRY = "s3.retry"
    CACHE_HIT = "cache.hit"
    CACHE_MISS = "cache.miss"
    AHEAD_FETCHED = "ahead.fetched"
    """Files that came into the cache before anybody asked for them."""
    AHEAD_USED = "ahead.used"
    AHEAD_UNUSED = "ahead.unused"
    """The reader went another way."""
    AHEAD_FROM_DISK = "ahead.from_disk"
    """Files of the cache that the disk was asked for before anybody read them."""


class Arrow(enum.Enum):
    """PlantUML arrows: solid carries content, dashed carries a question, an answer or a name."""

    TO = "->"
    TO_DASHED = "-->"
    FROM = "<-"
    FROM_DASHED = "<--"


class Local(enum.Enum):
    """The local participant: a cached store keeps what passes, an uncached one only its temporary."""

    CACHE = "Cache"
    TMP = "tmp"

    @classmethod
    def of(cls, cached: bool) -> Local:
        return cls.CACHE if cached else cls.TMP


class Party(enum.Enum):
    """The participants whose names do not depend on the store."""

    CLIENT = "client"
    S3 = "S3"
    INDEX = "Index"
    """Drawn on request only: its steps are transactions."""


StepSink = Callable[[str], object]
"""Takes finished lines of a diagram, without the newline. Must not block for long and must not raise."""


class Tracer:
    """Counts always, draws when told to. One per mounted volume; used from the trio thread and, for
    :meth:`count` alone, from worker threads."""

    def __init__(self, client_name: str = "client") -> None:
        self.client_name = client_name
        self.counts: collections.Counter[Count] = collections.Counter()
        self._sink: StepSink | None = None
        self._declared: set[str] = set()
        self._draws_index = False

    # -- counts --------------------------------------------------------------------------------------

    def count(self, what: Count, by: int = 1) -> None:
        self.counts[what] += by
        if self._draws_index and what is Count.INDEX_WRITE:
            self.step(Party.CLIENT, Arrow.TO, Party.INDEX, "transaction")

    # -- steps ---------------------------------------------------------------------------------------

    def start_steps(self, sink: StepSink, local: Local, *, with_index: bool = False) -> None:
        """Begin a diagram whose local participant is drawn between the client and S3; ``with_index`` adds
        the index behind S3."""
        self._sink = sink
        self._draws_index = with_index
        sink("@startuml")
        self._declared = {local.value}
        names = [self.client_name, local.value, Party.S3.value, *([Party.INDEX.value] if with_index else [])]
        for order, name in enumerate(names, 1):
            sink(f"participant {name} order {order}")

    def stop_steps(self) -> None:
        if self._sink is not None:
            self._sink("@enduml")
            self._sink = None
            self._draws_index = False

    @property
    def drawing(self) -> bool:
        return self._sink is not None

    def section(self, title: str) -> None:
        """A caption across the diagram, given by whoever drives the filesystem."""
        if self._sink is not None:
            self._sink(f"== {_one_line(title)} ==")

    def step(
        self,
        left: Party | Local,
        arrow: Arrow,
        right: Party | Local,
        message: str,
        note: str | None = None,
    ) -> None:
        """Draw one step. ``note`` names its subject (a file of the tier, an object key)."""
        sink = self._sink
        if sink is None:
            return
        for party in (left, right):
            if isinstance(party, Local) and party.value not in self._declared:
                self._declared.add(party.value)
                sink(f"participant {party.value} order 2")
        sink(f"{self._name(left)} {arrow.value} {self._name(right)}: {_one_line(message)}")
        if note is not None:
            # A rename happens within one participant; the diagrams hang its note on that lifeline.
            of = f" of {self._name(right)}" if message == "rename" else ""
            sink(f"{NOTE_INDENT}hnote right{of}: {_one_line(note)}")

    def _name(self, party: Party | Local) -> str:
        return self.client_name if party is Party.CLIENT else party.value


NOTE_INDENT = " " * 32


def _one_line(text: str) -> str:
    """Names are data: a newline or a control character in a key must not become a line of its own."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
