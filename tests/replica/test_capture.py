"""Changes captured from one index and replayed into a copy of it give the same index."""

from __future__ import annotations

import tempfile
from pathlib import Path

import apsw
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3blobfs.errors import IndexDamaged, IndexFenced
from s3blobfs.index import dentries, inodes, replica, uploads, xattrs
from s3blobfs.index.capture import Capture, Changes
from s3blobfs.index.database import Database
from s3blobfs.index.replay import Replay
from s3blobfs.index.replica import ReplicaRow
from s3blobfs.index.transaction import Transaction
from s3blobfs.index.uploads import UploadState
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.test_model import STEPS, Abort, Model, Step, apply
from tests.index.volume import NOW, ROOT, add_file, digests_of, give_content
from tests.replica.dumps import dump, tables_without_key

ROW = ReplicaRow(7, "d" * 64, "p" * 64, 5, 2, True)


async def new_index(path: Path) -> Database:
    database = volume.make(path)
    await database.write(volume.fill)
    return database


def captured(database: Database, **options: int) -> Capture:
    return database.capture(lambda: None, now_ns=lambda: NOW, **options)


async def copy_of(database: Database, path: Path) -> list[Changes]:
    """What was captured before it."""
    pinned, changes = await database.pin()
    try:
        await pinned.copy_to(path)
    finally:
        pinned.close()
    return changes


def replay(path: Path, changes: list[Changes]) -> None:
    copy = Replay(path)
    for each in changes:
        copy.apply(each)
    copy.finish()


# --- equality ------------------------------------------------------------------------------------------

CUT_OR_STEP = st.one_of(STEPS, st.just("cut"), st.just("copy"))


async def _play(directory: Path, steps: list[Step | str]) -> None:
    database = await new_index(directory / "index.db")
    captured(database)
    await copy_of(database, directory / "first.db")
    model = Model()
    every: list[Changes] = []
    late: list[Changes] | None = None
    for step in steps:
        if isinstance(step, str):
            if step == "cut" or late is not None:
                taken = await database.captured()
                every += taken
                if late is not None:
                    late += taken
            else:
                every += await copy_of(database, directory / "late.db")
                late = []
            continue

        def transaction(tx: Transaction, step: Step = step) -> None:
            apply(tx, model, step)

        await database.write(transaction, durable=step.durable)
    taken = await database.captured()
    every += taken
    await database.aclose()
    replay(directory / "first.db", every)
    assert dump(directory / "first.db") == dump(directory / "index.db")
    if late is not None:
        replay(directory / "late.db", late + taken)
        assert dump(directory / "late.db") == dump(directory / "index.db")
    copy = Database.open(directory / "first.db", tracer=Tracer())
    assert await copy.check() == []
    await copy.aclose()


@settings(max_examples=30, deadline=None)
@given(st.lists(CUT_OR_STEP, max_size=40))
def test_a_replayed_copy_is_the_same_index(steps: list[Step | str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(_play, Path(directory), steps)


async def test_names_that_change_places_in_one_cut(tmp_path: Path) -> None:
    """A chain and a circle through the constraint that a name is unique in its directory."""
    database = await new_index(tmp_path / "index.db")
    for name in (b"a", b"b", b"c", b"d"):
        await database.write(lambda tx, name=name: add_file(tx, ROOT, name))  # type: ignore[misc]
    captured(database)
    await copy_of(database, tmp_path / "copy.db")
    for old, new in ((b"a", b"x"), (b"b", b"a"), (b"c", b"b"), (b"x", b"c"), (b"d", b"e"), (b"a", b"d")):
        await database.write(
            lambda tx, old=old, new=new: dentries.move(tx, ROOT, old, ROOT, new)  # type: ignore[misc]
        )
    changes = await database.captured()
    await database.aclose()
    assert len(changes) == 1
    replay(tmp_path / "copy.db", changes)
    assert dump(tmp_path / "copy.db") == dump(tmp_path / "index.db")


async def test_ids_of_what_came_and_went_are_not_given_again(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    captured(database)
    await copy_of(database, tmp_path / "copy.db")
    row = await database.write(lambda tx: add_file(tx, ROOT, b"brief"))

    def remove(tx: Transaction) -> None:
        xattrs.set(tx, row.id, b"user.x", b"cascades")
        dentries.remove(tx, ROOT, b"brief")
        inodes.remove(tx, row.id)

    await database.write(remove)
    changes = await database.captured()
    await database.aclose()
    replay(tmp_path / "copy.db", changes)
    assert dump(tmp_path / "copy.db") == dump(tmp_path / "index.db")
    copy = Database.open(tmp_path / "copy.db", tracer=Tracer())
    again = await copy.write(lambda tx: add_file(tx, ROOT, b"new"))
    assert again.id > row.id
    await copy.aclose()


async def test_the_journal_is_part_of_it(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    captured(database)
    await copy_of(database, tmp_path / "copy.db")
    row = await database.write(lambda tx: add_file(tx, ROOT, b"a"))

    def journal(tx: Transaction) -> None:
        uploads.insert(
            tx,
            inode_id=row.id,
            store_id=1,
            staged_name="bin_x",
            size_bytes=3,
            digests=digests_of(b"abc"),
            write_id="w",
            state=UploadState.SEALED,
            now_ns=NOW,
        )

    await database.write(journal)
    changes = await database.captured()
    await database.aclose()
    replay(tmp_path / "copy.db", changes)
    assert dump(tmp_path / "copy.db")["uploads"] == dump(tmp_path / "index.db")["uploads"] != []


async def test_every_table_can_be_captured(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    await database.aclose()
    assert tables_without_key(tmp_path / "index.db") == []


# --- what is captured ----------------------------------------------------------------------------------


async def test_nothing_is_captured_of_what_failed_or_is_about_the_file(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    capture = captured(database)

    def fails(tx: Transaction) -> None:
        add_file(tx, ROOT, b"a")
        raise Abort

    with pytest.raises(Abort):
        await database.write(fails)
    await database.captured()
    before = database.sequence
    await database.note(lambda tx: replica.store(tx, ROW))
    assert database.sequence == before
    assert await database.captured() == []
    assert capture.since_ns is None
    assert await database.read(replica.find) == ROW
    await copy_of(database, tmp_path / "copy.db")
    await database.aclose()
    copy = Database.open(tmp_path / "copy.db", tracer=Tracer())
    assert await copy.read(replica.find) is None
    await copy.aclose()


async def test_changes_are_numbered_and_told_of(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    told = []
    capture = database.capture(lambda: told.append(1), now_ns=lambda: NOW)
    await database.write(lambda tx: add_file(tx, ROOT, b"a"))
    assert told == []
    await database.flush()
    assert told == [1] and capture.since_ns == NOW
    await database.write(lambda tx: add_file(tx, ROOT, b"b"))
    await database.flush()
    assert told == [1]
    (changes,) = await database.captured()
    assert (changes.sequence, changes.made_ns) == (database.sequence, NOW)
    assert await database.captured() == []
    await database.aclose()


async def test_a_long_session_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3blobfs.index.capture.CUT_BYTES", 4096)
    database = await new_index(tmp_path / "index.db")
    captured(database)
    await copy_of(database, tmp_path / "copy.db")
    for at in range(300):
        await database.write(lambda tx, at=at: add_file(tx, ROOT, b"%d" % at))  # type: ignore[misc]
        if at % 20 == 0:
            await database.flush()
    changes = await database.captured()
    assert len(changes) > 3
    await database.aclose()
    replay(tmp_path / "copy.db", changes)
    assert dump(tmp_path / "copy.db") == dump(tmp_path / "index.db")


async def test_memory_is_bounded_and_a_new_copy_begins_anew(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    capture = captured(database, backlog_bytes=20_000)
    for at in range(1000):
        await database.write(lambda tx, at=at: add_file(tx, ROOT, b"%d" % at))  # type: ignore[misc]
        await database.flush()
        assert capture.backlog_bytes < 25_000
    assert capture.lost and capture.backlog_bytes == 0
    capture.restart()
    assert not capture.lost
    await copy_of(database, tmp_path / "copy.db")
    await database.write(lambda tx: add_file(tx, ROOT, b"after"))
    changes = await database.captured()
    await database.aclose()
    replay(tmp_path / "copy.db", changes)
    assert dump(tmp_path / "copy.db") == dump(tmp_path / "index.db")


async def test_a_pinned_state_stays_while_others_write(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    pinned, changes = await database.pin()
    assert changes == []
    await database.write(lambda tx: add_file(tx, ROOT, b"later"), durable=True)
    await pinned.copy_to(tmp_path / "copy.db")
    pinned.close()
    copy = Database.open(tmp_path / "copy.db", tracer=Tracer())
    assert copy.sequence == pinned.sequence == database.sequence - 1
    assert await copy.read(lambda tx: dentries.find(tx, ROOT, b"later")) is None
    await copy.aclose()
    await database.aclose()


# --- what does not belong ------------------------------------------------------------------------------


async def test_changes_of_another_state_are_refused_whole(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    captured(database)
    await copy_of(database, tmp_path / "copy.db")
    row = await database.write(lambda tx: add_file(tx, ROOT, b"a"))
    (first,) = await database.captured()
    await database.write(lambda tx: give_content(tx, row.id, b"content"))
    (second,) = await database.captured()
    await database.aclose()
    before = dump(tmp_path / "copy.db")
    copy = Replay(tmp_path / "copy.db")
    with pytest.raises(IndexDamaged, match="do not follow on"):
        copy.apply(second)
    copy.finish()
    assert dump(tmp_path / "copy.db") == before
    replay(tmp_path / "copy.db", [first, second])
    with pytest.raises(IndexDamaged):
        replay(tmp_path / "copy.db", [second])


async def test_what_is_no_changeset_is_refused(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    await copy_of(database, tmp_path / "copy.db")
    await database.aclose()
    copy = Replay(tmp_path / "copy.db")
    with pytest.raises(IndexDamaged):
        copy.apply(Changes(99, NOW, {}, b"\x54nonsense"))
    copy.close()


async def test_a_fenced_index_refuses_writes_and_goes_on_reading(tmp_path: Path) -> None:
    database = await new_index(tmp_path / "index.db")
    await database.write(lambda tx: add_file(tx, ROOT, b"a"))
    database.fence("somebody else goes on")
    with pytest.raises(IndexFenced, match="somebody else"):
        await database.write(lambda tx: add_file(tx, ROOT, b"b"))
    assert await database.read(lambda tx: dentries.find(tx, ROOT, b"a")) is not None
    await database.commit()
    await database.aclose()


def test_sqlite_applies_changes_in_circles() -> None:
    """Older ones give up on names that changed places."""
    assert hasattr(apsw, "SQLITE_CHANGESETAPPLY_NOUPDATELOOP")
