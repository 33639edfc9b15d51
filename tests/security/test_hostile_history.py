"""The copy of the index in a bucket to which somebody else can write: checksums he can compute himself."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from trio.testing import MockClock

from s3blobfs.errors import DamagedContent, IndexDamaged, S3BlobFSError
from s3blobfs.index.capture import Changes
from s3blobfs.replica import names, segment, snapshot
from s3blobfs.replica.reading import Reader
from s3blobfs.replica.recovery import Request, recover_index
from tests.replica.kit import Site

MakeSite = Callable[..., Site]


def sealed(magic: bytes, header: dict[str, Any], payload: bytes) -> bytes:
    """An object whose checksum is right."""
    data = segment.frame(magic, header) + payload
    return data + hashlib.sha256(data).digest()


async def site_with_history(make_site: MakeSite) -> Site:
    site = make_site()
    await site.make()
    async with site.mount() as mount:
        await mount.add(b"file")
        await mount.settle()
    return site


async def forge_snapshot(site: Site, tmp_path: Path, change: Callable[[apsw.Connection], object]) -> None:
    """Put a changed database in the place of the newest snapshot's."""
    key = max(site.keys(names.snapshots_prefix("")))
    data = (await site.client.get(key)).data
    header, at = segment.unframe(snapshot.MAGIC, data, key)
    path = tmp_path / "forged.db"
    path.write_bytes(zlib.decompress(data[at:-32]))
    connection = apsw.Connection(str(path))
    change(connection)
    connection.close()
    raw = path.read_bytes()
    header["database_bytes"] = len(raw)
    await site.client.put(key, sealed(snapshot.MAGIC, header, zlib.compress(raw)))


async def recover(site: Site, tmp_path: Path) -> None:
    reader = Reader(site.client, "", site.settings.volume_id)
    await recover_index(
        reader,
        tmp_path / "recovered.db",
        lambda _: site.client,
        Request(partial=True),
        now_ns=lambda: 1,
    )


SCHEMAS = {
    "a trigger": "CREATE TRIGGER evil AFTER INSERT ON inodes BEGIN DELETE FROM blobs; END",
    "a view": "CREATE VIEW evil AS SELECT * FROM inodes",
    "a table": "CREATE TABLE evil (a)",
    "a view in place of a table": "ALTER TABLE xattrs RENAME TO x; CREATE VIEW xattrs AS SELECT * FROM x",
    "no trigger": "DROP TRIGGER inodes_counted",
}


@pytest.mark.parametrize("sql", SCHEMAS.values(), ids=SCHEMAS)
async def test_a_schema_that_is_not_ours(
    make_site: MakeSite, autojump_clock: MockClock, tmp_path: Path, sql: str
) -> None:
    site = await site_with_history(make_site)
    await forge_snapshot(site, tmp_path, lambda connection: connection.execute(sql))
    with pytest.raises(IndexDamaged, match="schema"):
        await recover(site, tmp_path)
    assert not (tmp_path / "recovered.db").exists()


@pytest.mark.parametrize("name", [b"..", b".", b"a/b", b"../../etc/passwd", b"nul\0", b"", b"x" * 256])
async def test_names_that_lead_elsewhere(
    make_site: MakeSite, autojump_clock: MockClock, tmp_path: Path, name: bytes
) -> None:
    def change(connection: apsw.Connection) -> None:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("INSERT INTO dentries (parent_id, name, inode_id) VALUES (1, ?, 1)", (name,))

    site = await site_with_history(make_site)
    await forge_snapshot(site, tmp_path, change)
    with pytest.raises(IndexDamaged, match="CHECK constraint failed in dentries"):
        await recover(site, tmp_path)
    assert not (tmp_path / "recovered.db").exists()


HEADERS: list[tuple[str, object]] = [
    ("number", "1"),
    ("number", None),
    ("made_ns", -1),
    ("made_ns", 2**64),
    ("sequence", [1]),
    ("schema_version", 1.5),
    ("volume_id", {}),
]


@pytest.mark.parametrize(("name", "value"), [*HEADERS, ("payload_bytes", 2**40), ("kind", "evil")])
def test_headers_of_segments(name: str, value: object) -> None:
    made = segment.Segment(1, segment.Kind.MARK, "v", "", 0, 0, 3, 1, "host")
    data, _ = segment.encode(made)
    header, at = segment.unframe(segment.MAGIC, data, "it")
    header[name] = value
    with pytest.raises(DamagedContent):
        forged, _ = segment.decode(sealed(segment.MAGIC, header, data[at:-32]), "it")
        segment.inflate(b"", forged.payload_bytes, "it")


@pytest.mark.parametrize(("name", "value"), [*HEADERS, ("database_bytes", -1)])
async def test_headers_of_snapshots(
    make_site: MakeSite, autojump_clock: MockClock, tmp_path: Path, name: str, value: object
) -> None:
    site = await site_with_history(make_site)
    key = max(site.keys(names.snapshots_prefix("")))
    data = (await site.client.get(key)).data
    header, at = segment.unframe(snapshot.MAGIC, data, key)
    header[name] = value
    await site.client.put(key, sealed(snapshot.MAGIC, header, data[at:-32]))
    with pytest.raises(S3BlobFSError):
        await recover(site, tmp_path)


def payload_of(head: object) -> bytes:
    text = json.dumps(head).encode()
    return zlib.compress(struct.pack(">I", len(text)) + text + struct.pack(">Q", 0))


@pytest.mark.parametrize(
    "head",
    [
        {"sequence": 1, "made_ns": 1, "ids": {"inodes": "1; DROP TABLE inodes"}},
        {"sequence": 1, "made_ns": 1, "ids": {"inodes": [1]}},
        {"sequence": 1, "made_ns": 1, "ids": [1]},
        {"sequence": "1", "made_ns": 1, "ids": {}},
        {"sequence": 1, "made_ns": None, "ids": {}},
        [],
    ],
)
def test_what_is_said_beside_changesets(head: object) -> None:
    payload = payload_of(head)
    made = segment.Segment(
        1, segment.Kind.CHANGES, "v", "", 0, 1, 3, 1, "host", payload, len(zlib.decompress(payload))
    )
    with pytest.raises(DamagedContent):
        segment.unpack(made)


def test_a_segment_that_unpacks_to_more_than_it_says() -> None:
    bomb = zlib.compress(bytes(64 * 1024 * 1024), 9)
    with pytest.raises(DamagedContent, match="does not hold"):
        segment.inflate(bomb, 1000, "it")
    with pytest.raises(DamagedContent, match="claims to hold"):
        segment.inflate(bomb, 2**50, "it")


async def test_a_snapshot_that_unpacks_to_more_than_it_says(
    make_site: MakeSite, autojump_clock: MockClock, tmp_path: Path
) -> None:
    site = await site_with_history(make_site)
    key = max(site.keys(names.snapshots_prefix("")))
    data = (await site.client.get(key)).data
    header, _ = segment.unframe(snapshot.MAGIC, data, key)
    bomb = zlib.compress(bytes(64 * 1024 * 1024), 9)
    await site.client.put(key, sealed(snapshot.MAGIC, header, bomb))
    with pytest.raises(IndexDamaged, match="holds more than"):
        await recover(site, tmp_path)
    assert list(tmp_path.glob("recovered*")) == []


async def test_changes_of_tables_that_are_not_shared(
    make_site: MakeSite, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """``replica`` is about the file, and says what the next mount may send: a changeset must not set it."""
    site = await site_with_history(make_site)
    forged = apsw.Connection(":memory:")
    forged.execute("CREATE TABLE replica (only INTEGER PRIMARY KEY, number, digest, previous, sequence,"
                   " schema_version, claimed)")  # fmt: skip
    session = apsw.Session(forged, "main")
    session.attach()
    forged.execute("INSERT INTO replica VALUES (1, 99, 'x', 'x', 1, 3, 1)")
    changeset = session.changeset()
    session.close()
    last = await site.segment(max(site.numbers()))
    digest = hashlib.sha256(
        (await site.client.get(names.segment_key("", last.number))).data[:-32]
    ).hexdigest()
    payload, size = segment.pack([Changes(last.sequence, last.made_ns, {}, changeset)])
    data, _ = segment.encode(
        segment.Segment(
            last.number + 1, segment.Kind.CHANGES, last.volume_id, digest, last.sequence, last.sequence,
            last.schema_version, last.made_ns, "evil", payload, size,
        )
    )  # fmt: skip
    await site.client.put(names.segment_key("", last.number + 1), data)
    await recover(site, tmp_path)
    recovered = apsw.Connection(str(tmp_path / "recovered.db"))
    assert recovered.execute("SELECT count(*) FROM replica WHERE number = 99").fetchall() == [(0,)]
    recovered.close()
