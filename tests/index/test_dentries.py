"""Names: what can be one, listings that go on while entries change, and questions about the tree."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from s3blobfs.errors import FilesystemError, VolumeIndexError
from s3blobfs.index import dentries, inodes, stores
from s3blobfs.index.database import Database
from s3blobfs.index.transaction import Transaction
from tests.index.volume import NOW, ROOT, VERSIONED_STORE, add_directory, add_file


async def _refused(db: Database, fn: Callable[[Transaction], object]) -> int:
    with pytest.raises(FilesystemError) as caught:
        await db.write(fn)
    return caught.value.errno


async def test_a_name_leads_to_its_inode(db: Database) -> None:
    row = await db.write(lambda tx: add_file(tx, ROOT, b"\xffname"))
    assert await db.read(lambda tx: dentries.find(tx, ROOT, b"\xffname")) == row.id
    assert await db.read(lambda tx: dentries.lookup(tx, ROOT, b"\xffname")) == row
    assert await db.read(lambda tx: dentries.find(tx, ROOT, b"other")) is None
    assert await db.read(lambda tx: dentries.lookup(tx, ROOT, b"other")) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"taken", errno.EEXIST),
        (b"n" * 256, errno.ENAMETOOLONG),
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
    ],
)
async def test_what_cannot_be_a_name(db: Database, name: bytes, expected: int) -> None:
    await db.write(lambda tx: (add_file(tx, ROOT, b"taken"), add_file(tx, ROOT, b"n" * 255)))
    assert await _refused(db, lambda tx: add_file(tx, ROOT, name)) == expected
    assert await _refused(db, lambda tx: dentries.move(tx, ROOT, b"n" * 255, ROOT, name)) == expected


async def test_names_need_a_directory_and_an_inode(db: Database) -> None:
    assert await _refused(db, lambda tx: dentries.insert(tx, 99, b"name", ROOT)) == errno.ENOENT
    assert await _refused(db, lambda tx: dentries.insert(tx, ROOT, b"name", 99)) == errno.ENOENT
    await db.write(lambda tx: add_file(tx, ROOT, b"file"))
    assert await _refused(db, lambda tx: dentries.retarget(tx, ROOT, b"file", 99)) == errno.ENOENT
    assert await _refused(db, lambda tx: dentries.move(tx, ROOT, b"file", 99, b"x")) == errno.ENOENT


@pytest.mark.parametrize(
    "operation",
    [
        lambda tx: dentries.remove(tx, ROOT, b"none"),
        lambda tx: dentries.retarget(tx, ROOT, b"none", ROOT),
        lambda tx: dentries.move(tx, ROOT, b"none", ROOT, b"x"),
    ],
)
async def test_a_name_that_is_not_there(db: Database, operation: Callable[[Transaction], object]) -> None:
    assert await _refused(db, operation) == errno.ENOENT


async def test_an_inode_with_a_name_cannot_be_removed(db: Database) -> None:
    row = await db.write(lambda tx: add_file(tx, ROOT, b"file"))
    with pytest.raises(VolumeIndexError, match="FOREIGN KEY"):
        await db.write(lambda tx: inodes.remove(tx, row.id))


async def test_a_listing_goes_on_while_entries_come_and_go(db: Database) -> None:
    names = [b"%02d" % at for at in range(10)]
    await db.write(lambda tx: [add_file(tx, ROOT, name) for name in names])
    first = await db.read(lambda tx: dentries.page(tx, ROOT, 0, 4))
    assert [entry[1] for entry in first] == names[:4]

    def change(tx: Transaction) -> None:
        for name in (names[3], names[5]):
            row = dentries.lookup(tx, ROOT, name)
            assert row is not None
            dentries.remove(tx, ROOT, name)
            inodes.remove(tx, row.id)
        add_file(tx, ROOT, b"00new")
        dentries.move(tx, ROOT, names[0], ROOT, b"99")  # listed already: must not come again
        dentries.move(tx, ROOT, names[6], ROOT, b"000")  # not listed yet: must come
        seven, eight = (dentries.find(tx, ROOT, name) for name in names[7:9])
        assert seven is not None and eight is not None
        dentries.retarget(tx, ROOT, names[7], eight)
        dentries.retarget(tx, ROOT, names[8], seven)

    await db.write(change)
    rest = await db.read(lambda tx: dentries.page(tx, ROOT, first[-1][0], 100))
    assert [entry[1] for entry in rest] == [names[4], b"000", *names[7:], b"00new"]
    cookies = [entry[0] for entry in rest]
    assert cookies == sorted(cookies)
    for _, name, inode_id, *_ in rest:
        assert inode_id == await db.read(lambda tx, name=name: dentries.find(tx, ROOT, name))  # type: ignore[misc]
    assert await db.read(lambda tx: dentries.page(tx, ROOT, first[-1][0], 100, shift=2)) == [
        (cookie + 2, *other) for cookie, *other in rest
    ]


async def test_cookies_are_never_used_again(db: Database) -> None:
    def write(tx: Transaction) -> int:
        row = add_file(tx, ROOT, b"file")
        ((cookie, *_),) = dentries.page(tx, ROOT, 0, 10)
        dentries.remove(tx, ROOT, b"file")
        inodes.remove(tx, row.id)
        return cookie

    first = await db.write(write)
    assert await db.write(write) > first


async def test_emptiness(db: Database) -> None:
    directory = await db.write(lambda tx: add_directory(tx, ROOT, b"directory"))
    assert await db.read(lambda tx: dentries.is_empty(tx, directory.id))
    assert not await db.read(lambda tx: dentries.is_empty(tx, ROOT))


async def test_questions_about_the_tree(db: Database) -> None:
    def write(tx: Transaction) -> tuple[int, int, int]:
        upper = add_directory(tx, ROOT, b"upper")
        lower = add_directory(tx, upper.id, b"lower")
        file = add_file(tx, lower.id, b"file")
        dentries.insert(tx, ROOT, b"link", file.id)
        inodes.add_links(tx, file.id, 1, NOW)
        return upper.id, lower.id, file.id

    upper, lower, file = await db.write(write)

    def ask(tx: Transaction) -> None:
        assert dentries.parent_of(tx, lower) == upper
        assert dentries.parent_of(tx, ROOT) is None
        assert dentries.names_of(tx, file) == [(lower, b"file"), (ROOT, b"link")]
        assert dentries.names_of(tx, ROOT) == []
        assert dentries.path_of(tx, file) == b"upper/lower/file"
        assert dentries.path_of(tx, ROOT) == b""
        assert dentries.path_of(tx, 99) is None
        for ancestor, inode_id in ((ROOT, lower), (upper, lower), (lower, lower), (lower, file)):
            assert dentries.is_ancestor(tx, ancestor, inode_id)
        assert not dentries.is_ancestor(tx, lower, upper)

    await db.read(ask)


async def test_questions_end_even_in_a_cycle(unchecked: Database) -> None:
    def write(tx: Transaction) -> None:
        upper = add_directory(tx, ROOT, b"upper")
        lower = add_directory(tx, upper.id, b"lower")
        # A binding elsewhere, so that the way up is walked.
        stores.bind(tx, add_directory(tx, ROOT, b"bound").id, VERSIONED_STORE)
        dentries.move(tx, ROOT, b"upper", lower.id, b"upper")
        assert dentries.path_of(tx, lower.id) is None
        assert not dentries.is_ancestor(tx, ROOT, lower.id)
        assert stores.binding_of(tx, lower.id) == stores.DEFAULT_STORE_ID

    await unchecked.write(write)
