"""Names: made, linked, moved and removed; link counts, times, and what is refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from s3blobfs.fs.attributes import AttributeChanges, Attributes, Caller
from s3blobfs.fs.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fs.calls import Clock, find, make_file, names, opened_file, refused
from tests.support.rig import ROOT, USER, Rig, Setup, open_rig

ODD_NAMES = [
    b"line\nbreak",
    b"id@version",
    b"..hidden",
    b"...",
    b" ",
    b"-rf",
    b"\\",
    b"%00",
    b"\xff\xfe\x80",
    b"\xc3\x28",
    "\u00e4".encode(),
    b"x" * 255,
    b"\xf0\x9f\x98\x80" * 63,
    b"\x01\x7f",
    b".s3blobfs",
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed(tmp_path: Path, clock: Clock) -> AsyncIterator[Rig]:
    """A filesystem whose time stands still until the test moves it."""
    async with open_rig(Setup(tmp_path / "volume", now_ns=clock)) as rig:
        yield rig


async def mkdir(rig: Rig, name: bytes, parent: int = ROOT) -> int:
    return (await rig.fs.mkdir(parent, name, 0o755, USER)).inode_id


# -- making --------------------------------------------------------------------------------------------


async def test_a_new_file(timed: Rig, clock: Clock) -> None:
    now = clock.tick()
    opened, made = await timed.fs.create(ROOT, b"f", 0o4751, os.O_RDWR, USER)
    assert made == Attributes(
        inode_id=made.inode_id,
        mode=stat.S_IFREG | 0o4751,
        nlink=1,
        uid=USER.uid,
        gid=USER.gid,
        rdev=0,
        size_bytes=0,
        blocks=0,
        atime_ns=now,
        mtime_ns=now,
        ctime_ns=now,
    )
    assert await timed.fs.getattr(made.inode_id) == made
    assert await timed.fs.lookup(ROOT, b"f") == made
    await timed.fs.release(opened.handle)


@pytest.mark.parametrize(
    ("kind", "rdev"),
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(259, 70_000)),
    ],
    ids=["file", "fifo", "socket", "character device", "block device"],
)
async def test_mknod_makes_every_type(rig: Rig, kind: int, rdev: int) -> None:
    made = await rig.fs.mknod(ROOT, b"n", kind | 0o640, rdev, USER)
    assert (made.mode, made.rdev, made.nlink, made.size_bytes) == (kind | 0o640, rdev, 1, 0)
    await rig.fs.forget([(made.inode_id, 1)])
    found = await find(rig, b"n")
    assert (found.mode, found.rdev) == (kind | 0o640, rdev)


async def test_mknod_without_a_type_makes_a_file_and_refuses_others(rig: Rig) -> None:
    assert (await rig.fs.mknod(ROOT, b"n", 0o600, 0, USER)).mode == stat.S_IFREG | 0o600
    for kind in (stat.S_IFDIR, stat.S_IFLNK, 0o150000):
        with refused(errno.EINVAL):
            await rig.fs.mknod(ROOT, b"m", kind | 0o600, 0, USER)
    assert await names(rig) == [b"n"]


async def test_only_files_can_be_opened(rig: Rig) -> None:
    fifo = await rig.fs.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, USER)
    with refused(errno.ENXIO):
        await rig.fs.open(fifo.inode_id, os.O_RDONLY)
    directory = await mkdir(rig, b"d")
    with refused(errno.EISDIR):
        await rig.fs.open(directory, os.O_RDONLY)
    made = await make_file(rig, b"f")
    with refused(errno.ENOTDIR):
        await rig.fs.opendir(made.inode_id)


async def test_a_directory_counts_its_subdirectories(rig: Rig) -> None:
    top = await mkdir(rig, b"d")
    assert (await rig.fs.getattr(top)).nlink == 2
    assert (await rig.fs.getattr(ROOT)).nlink == 3
    await mkdir(rig, b"one", top)
    await mkdir(rig, b"two", top)
    await make_file(rig, b"file", top)
    assert (await rig.fs.getattr(top)).nlink == 4
    await rig.fs.rmdir(top, b"one")
    assert (await rig.fs.getattr(top)).nlink == 3


async def test_a_symlink_keeps_its_target_to_the_byte(rig: Rig) -> None:
    for target in (b"x", b"../../..", b"/abs\nolute", b"\xff" * 4095, b"a//b/"):
        made = await rig.fs.symlink(ROOT, b"s", target, USER)
        assert stat.S_ISLNK(made.mode)
        assert stat.S_IMODE(made.mode) == 0o777
        assert made.size_bytes == len(target)
        assert await rig.fs.readlink(made.inode_id) == target
        await rig.fs.unlink(ROOT, b"s")


async def test_symlink_targets_have_limits(rig: Rig) -> None:
    with refused(errno.ENAMETOOLONG):
        await rig.fs.symlink(ROOT, b"s", b"x" * 4096, USER)
    with refused(errno.ENOENT):
        await rig.fs.symlink(ROOT, b"s", b"", USER)
    assert await names(rig) == []


async def test_readlink_is_for_symlinks(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    for inode_id in (made.inode_id, ROOT):
        with refused(errno.EINVAL):
            await rig.fs.readlink(inode_id)


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: repr(name)[:24])
async def test_names_are_bytes(any_setup: Setup, name: bytes) -> None:
    async with open_rig(any_setup) as rig:
        await rig.write_file(name, b"content")
        directory = await mkdir(rig, b"d")
        await rig.fs.rename(ROOT, name, directory, name)
        await rig.fs.link((await find(rig, name, directory)).inode_id, ROOT, name)
        assert await names(rig, directory) == [name]
    async with open_rig(any_setup) as rig:
        assert await rig.read_file(name) == b"content"
        found = await find(rig, b"d")
        assert await rig.read_file(name, found.inode_id) == b"content"
        await rig.fs.unlink(ROOT, name)
        assert await names(rig) == [b"d"]


async def test_a_composed_and_a_decomposed_name_are_two(rig: Rig) -> None:
    await rig.write_file("\u00e4".encode(), b"one")
    await rig.write_file("a\u0308".encode(), b"two")
    assert await rig.read_file("\u00e4".encode()) == b"one"
    assert await rig.read_file("a\u0308".encode()) == b"two"


async def test_what_is_no_name_is_refused_by_every_call(rig: Rig) -> None:
    fs = rig.fs
    made = await make_file(rig, b"f")
    directory = await mkdir(rig, b"d")
    for name, expected in (
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"", errno.ENOENT),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
    ):
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(fs.create, directory, name, 0o644, os.O_RDWR, USER),
            partial(fs.mknod, directory, name, 0o644, 0, USER),
            partial(fs.mkdir, directory, name, 0o755, USER),
            partial(fs.symlink, directory, name, b"target", USER),
            partial(fs.link, made.inode_id, directory, name),
            partial(fs.unlink, directory, name),
            partial(fs.rmdir, directory, name),
            partial(fs.rename, directory, name, ROOT, b"other"),
            partial(fs.rename, ROOT, b"f", directory, name),
        ]
        if name not in (b".", b".."):
            calls.append(partial(fs.lookup, directory, name))
        for call in calls:
            with refused(expected):
                await call()
    assert await names(rig) == [b"f", b"d"]
    assert await names(rig, directory) == []


async def test_dots_are_looked_up(rig: Rig) -> None:
    one = await mkdir(rig, b"one")
    two = await mkdir(rig, b"two", one)
    assert (await find(rig, b".", two)).inode_id == two
    assert (await find(rig, b"..", two)).inode_id == one
    assert (await find(rig, b"..", one)).inode_id == ROOT
    assert (await find(rig, b"..", ROOT)).inode_id == ROOT


async def test_taken_names_are_refused(rig: Rig) -> None:
    fs = rig.fs
    made = await make_file(rig, b"f")
    await mkdir(rig, b"d")
    await fs.symlink(ROOT, b"s", b"target", USER)
    for name in (b"f", b"d", b"s"):
        for call in (
            partial(fs.mknod, ROOT, name, 0o644, 0, USER),
            partial(fs.mkdir, ROOT, name, 0o755, USER),
            partial(fs.symlink, ROOT, name, b"target", USER),
            partial(fs.link, made.inode_id, ROOT, name),
            partial(fs.create, ROOT, name, 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL, USER),
        ):
            with refused(errno.EEXIST):
                await call()
    assert (await fs.getattr(made.inode_id)).nlink == 1


async def test_create_without_excl_opens_what_is_there(rig: Rig) -> None:
    await rig.write_file(b"f", b"content")
    opened, found = await rig.fs.create(ROOT, b"f", 0o600, os.O_RDWR | os.O_CREAT, USER)
    assert stat.S_IMODE(found.mode) == 0o644
    assert await rig.fs.read(opened.handle, 0, 100) == b"content"
    await rig.fs.release(opened.handle)


async def test_a_missing_parent_is_refused(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    gone = await mkdir(rig, b"gone")
    handle = await rig.fs.opendir(gone)
    await rig.fs.rmdir(ROOT, b"gone")
    for parent, expected in (
        (made.inode_id, errno.ENOTDIR),
        (gone, errno.ENOENT),
        (987_654, errno.ENOENT),
    ):
        for call in (
            partial(rig.fs.create, parent, b"x", 0o644, os.O_RDWR, USER),
            partial(rig.fs.mkdir, parent, b"x", 0o755, USER),
            partial(rig.fs.symlink, parent, b"x", b"t", USER),
            partial(rig.fs.link, made.inode_id, parent, b"x"),
            partial(rig.fs.rename, ROOT, b"f", parent, b"x"),
        ):
            with refused(expected):
                await call()
    await rig.fs.releasedir(handle)


async def test_set_gid_directories_hand_on_their_group(rig: Rig) -> None:
    fs = rig.fs
    shared = await mkdir(rig, b"shared")
    await fs.setattr(shared, AttributeChanges(mode=0o2775, gid=4711))
    opened, made = await fs.create(shared, b"f", 0o644, os.O_RDWR, USER)
    await fs.release(opened.handle)
    assert (made.uid, made.gid, stat.S_IMODE(made.mode)) == (USER.uid, 4711, 0o644)
    below = await fs.mkdir(shared, b"d", 0o755, USER)
    assert (below.gid, stat.S_IMODE(below.mode)) == (4711, 0o2755)
    deeper = await fs.mkdir(below.inode_id, b"d", 0o700, USER)
    assert (deeper.gid, stat.S_IMODE(deeper.mode)) == (4711, 0o2700)
    link = await fs.symlink(shared, b"s", b"t", USER)
    assert link.gid == 4711
    plain = await fs.mkdir(ROOT, b"plain", 0o755, Caller(1, 2))
    assert (plain.uid, plain.gid, stat.S_IMODE(plain.mode)) == (1, 2, 0o755)


# -- links ---------------------------------------------------------------------------------------------


async def test_names_of_one_file_share_everything(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"one")
    directory = await mkdir(rig, b"d")
    linked = await rig.fs.link(made.inode_id, directory, b"g")
    assert (linked.inode_id, linked.nlink) == (made.inode_id, 2)
    await rig.write_file(b"f", b"two")
    assert await rig.read_file(b"g", directory) == b"two"
    await rig.fs.unlink(ROOT, b"f")
    assert (await find(rig, b"g", directory)).nlink == 1
    assert await rig.read_file(b"g", directory) == b"two"
    await rig.fs.unlink(directory, b"g")
    assert await rig.reaper.drain() == 0


async def test_directories_have_one_name(rig: Rig) -> None:
    directory = await mkdir(rig, b"d")
    with refused(errno.EPERM):
        await rig.fs.link(directory, ROOT, b"e")


async def test_a_file_without_names_cannot_be_linked_again(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    async with opened_file(rig, made.inode_id):
        await rig.fs.unlink(ROOT, b"f")
        with refused(errno.ENOENT):
            await rig.fs.link(made.inode_id, ROOT, b"g")


async def test_symlinks_and_special_files_can_be_linked(rig: Rig) -> None:
    link = await rig.fs.symlink(ROOT, b"s", b"target", USER)
    assert (await rig.fs.link(link.inode_id, ROOT, b"t")).nlink == 2
    fifo = await rig.fs.mknod(ROOT, b"p", stat.S_IFIFO | 0o600, 0, USER)
    assert (await rig.fs.link(fifo.inode_id, ROOT, b"q")).nlink == 2


# -- removing ------------------------------------------------------------------------------------------


async def test_unlink_and_rmdir_are_for_different_things(rig: Rig) -> None:
    fs = rig.fs
    await make_file(rig, b"f")
    directory = await mkdir(rig, b"d")
    await fs.symlink(ROOT, b"s", b"d", USER)
    with refused(errno.EISDIR):
        await fs.unlink(ROOT, b"d")
    for name in (b"f", b"s"):
        with refused(errno.ENOTDIR):
            await fs.rmdir(ROOT, name)
    for call in (fs.unlink, fs.rmdir):
        with refused(errno.ENOENT):
            await call(ROOT, b"missing")
    await make_file(rig, b"inner", directory)
    with refused(errno.ENOTEMPTY):
        await fs.rmdir(ROOT, b"d")
    await fs.unlink(directory, b"inner")
    await fs.rmdir(ROOT, b"d")
    assert await names(rig) == [b"f", b"s"]


async def test_a_removed_inode_is_stale(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.unlink(ROOT, b"f")
    assert (await rig.fs.getattr(made.inode_id)).nlink == 0
    await rig.fs.forget([(made.inode_id, 1)])
    with refused(errno.ESTALE):
        await rig.fs.getattr(made.inode_id)
    with refused(errno.ESTALE):
        await rig.fs.open(made.inode_id, os.O_RDONLY)


# -- renaming ------------------------------------------------------------------------------------------


async def test_rename_keeps_the_inode_and_all_of_it(any_rig: Rig) -> None:
    rig = any_rig
    made = await rig.write_file(b"f", b"content")
    await rig.fs.setxattr(made.inode_id, b"user.x", b"y", USER)
    directory = await mkdir(rig, b"d")
    await rig.fs.rename(ROOT, b"f", directory, b"g")
    found = await find(rig, b"g", directory)
    assert (found.inode_id, found.nlink, found.size_bytes) == (made.inode_id, 1, 7)
    assert await rig.fs.getxattr(found.inode_id, b"user.x") == b"y"
    assert await rig.fs.lookup(ROOT, b"f") is None
    assert await rig.read_file(b"g", directory) == b"content"


async def test_rename_replaces_what_is_there(any_rig: Rig) -> None:
    rig = any_rig
    await rig.write_file(b"new", b"new content")
    await rig.write_file(b"old", b"old content")
    await rig.fs.rename(ROOT, b"new", ROOT, b"old")
    assert await names(rig) == [b"old"]
    assert await rig.read_file(b"old") == b"new content"


async def test_a_replaced_file_that_is_open_stays_readable(any_rig: Rig) -> None:
    rig = any_rig
    await rig.write_file(b"new", b"new content")
    old = await rig.write_file(b"old", b"old content")
    async with opened_file(rig, old.inode_id, os.O_RDONLY) as handle:
        await rig.fs.rename(ROOT, b"new", ROOT, b"old")
        assert await rig.fs.read(handle, 0, 100) == b"old content"
        assert (await rig.fs.getattr(old.inode_id)).nlink == 0
    assert await rig.read_file(b"old") == b"new content"


async def test_a_replaced_name_of_several_counts_down(rig: Rig) -> None:
    await rig.write_file(b"new", b"new")
    old = await rig.write_file(b"old", b"old")
    await rig.fs.link(old.inode_id, ROOT, b"kept")
    await rig.fs.rename(ROOT, b"new", ROOT, b"old")
    assert (await find(rig, b"kept")).nlink == 1
    assert await rig.read_file(b"kept") == b"old"


async def test_rename_between_two_names_of_one_file_does_nothing(rig: Rig) -> None:
    made = await rig.write_file(b"f", b"x")
    await rig.fs.link(made.inode_id, ROOT, b"g")
    await rig.fs.rename(ROOT, b"f", ROOT, b"g")
    assert sorted(await names(rig)) == [b"f", b"g"]
    assert (await rig.fs.getattr(made.inode_id)).nlink == 2
    await rig.fs.rename(ROOT, b"f", ROOT, b"f")
    assert sorted(await names(rig)) == [b"f", b"g"]


async def test_rename_of_directories_counts_links(rig: Rig) -> None:
    fs = rig.fs
    one, two = await mkdir(rig, b"one"), await mkdir(rig, b"two")
    moved = await mkdir(rig, b"moved", one)
    await fs.rename(one, b"moved", two, b"moved")
    assert [(await fs.getattr(each)).nlink for each in (ROOT, one, two, moved)] == [4, 2, 3, 2]
    assert (await find(rig, b"..", moved)).inode_id == two
    empty = await mkdir(rig, b"empty", one)
    await fs.rename(two, b"moved", one, b"empty")
    assert [(await fs.getattr(each)).nlink for each in (ROOT, one, two, moved)] == [4, 3, 2, 2]
    assert (await fs.getattr(empty)).nlink == 0


async def test_what_rename_refuses(rig: Rig) -> None:
    fs = rig.fs
    made = await make_file(rig, b"f")
    directory = await mkdir(rig, b"d")
    inner = await mkdir(rig, b"inner", directory)
    await mkdir(rig, b"e")
    for old_parent, old, new_parent, new, flags, expected in (
        (ROOT, b"missing", ROOT, b"x", 0, errno.ENOENT),
        (ROOT, b"f", ROOT, b"d", 0, errno.EISDIR),
        (ROOT, b"e", ROOT, b"f", 0, errno.ENOTDIR),
        (ROOT, b"e", ROOT, b"d", 0, errno.ENOTEMPTY),
        (ROOT, b"d", inner, b"x", 0, errno.EINVAL),
        (ROOT, b"d", directory, b"inner", 0, errno.EINVAL),
        (ROOT, b"d", directory, b"inner", RENAME_EXCHANGE, errno.EINVAL),
        (directory, b"inner", ROOT, b"d", RENAME_EXCHANGE, errno.EINVAL),
        (ROOT, b"f", ROOT, b"e", RENAME_NOREPLACE, errno.EEXIST),
        (ROOT, b"f", ROOT, b"f", RENAME_NOREPLACE, errno.EEXIST),
        (ROOT, b"f", ROOT, b"x", RENAME_EXCHANGE, errno.ENOENT),
        (ROOT, b"missing", ROOT, b"f", RENAME_EXCHANGE, errno.ENOENT),
        (ROOT, b"f", ROOT, b"x", RENAME_EXCHANGE | RENAME_NOREPLACE, errno.EINVAL),
        (ROOT, b"f", ROOT, b"x", 4, errno.EINVAL),
        (ROOT, b"f", ROOT, b"x", 8, errno.EINVAL),
        (ROOT, b"f", made.inode_id, b"x", 0, errno.ENOTDIR),
    ):
        with refused(expected):
            await fs.rename(old_parent, old, new_parent, new, flags)
    assert await names(rig) == [b"f", b"d", b"e"]
    assert await names(rig, directory) == [b"inner"]


async def test_noreplace_moves_to_a_free_name(rig: Rig) -> None:
    await make_file(rig, b"f")
    await rig.fs.rename(ROOT, b"f", ROOT, b"g", RENAME_NOREPLACE)
    assert await names(rig) == [b"g"]


async def test_exchange_across_directories(any_rig: Rig) -> None:
    rig, fs = any_rig, any_rig.fs
    one, two = await mkdir(rig, b"one"), await mkdir(rig, b"two")
    file = await rig.write_file(b"a", b"content", one)
    moved = await mkdir(rig, b"b", two)
    await rig.write_file(b"below", b"deep", moved)
    await fs.rename(one, b"a", two, b"b", RENAME_EXCHANGE)
    assert (await find(rig, b"a", one)).inode_id == moved
    assert (await find(rig, b"b", two)).inode_id == file.inode_id
    assert [(await fs.getattr(each)).nlink for each in (one, two)] == [3, 2]
    assert (await find(rig, b"..", moved)).inode_id == one
    assert await rig.read_file(b"below", moved) == b"deep"
    assert await rig.read_file(b"b", two) == b"content"
    await fs.rename(two, b"b", one, b"a", RENAME_EXCHANGE)
    assert [(await fs.getattr(each)).nlink for each in (one, two)] == [2, 3]


async def test_exchange_of_two_directories_and_of_two_files(rig: Rig) -> None:
    one, two = await mkdir(rig, b"one"), await mkdir(rig, b"two")
    await rig.write_file(b"f", b"1", one)
    await rig.write_file(b"f", b"2", two)
    await rig.fs.rename(ROOT, b"one", ROOT, b"two", RENAME_EXCHANGE)
    assert (await find(rig, b"one")).inode_id == two
    await rig.fs.rename(one, b"f", two, b"f", RENAME_EXCHANGE)
    assert await rig.read_file(b"f", one) == b"2"
    assert await rig.read_file(b"f", two) == b"1"
    assert [(await rig.fs.getattr(each)).nlink for each in (ROOT, one, two)] == [4, 2, 2]


# -- times ---------------------------------------------------------------------------------------------


def times(attributes: Attributes) -> tuple[int, int, int]:
    return attributes.atime_ns, attributes.mtime_ns, attributes.ctime_ns


async def test_names_mark_the_times_of_their_directories(timed: Rig, clock: Clock) -> None:
    fs = timed.fs
    other = await mkdir(timed, b"other")
    born = clock.now_ns
    kept = await make_file(timed, b"kept")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "mknod": lambda: fs.mknod(ROOT, b"n", 0o644, 0, USER),
        "mkdir": lambda: fs.mkdir(ROOT, b"d", 0o755, USER),
        "symlink": lambda: fs.symlink(ROOT, b"s", b"t", USER),
        "link": lambda: fs.link(kept.inode_id, ROOT, b"l"),
        "rename": lambda: fs.rename(ROOT, b"s", ROOT, b"t"),
        "replace": lambda: fs.rename(ROOT, b"t", ROOT, b"n"),
        "unlink": lambda: fs.unlink(ROOT, b"l"),
        "rmdir": lambda: fs.rmdir(ROOT, b"d"),
        "away": lambda: fs.rename(ROOT, b"n", other, b"n"),
    }
    for what, call in calls.items():
        now = clock.tick()
        await call()
        after = await fs.getattr(ROOT)
        assert (after.mtime_ns, after.ctime_ns) == (now, now), what
    after = await fs.getattr(other)
    assert times(after) == (born, now, now)


async def test_names_mark_the_ctime_of_what_they_name(timed: Rig, clock: Clock) -> None:
    fs = timed.fs
    made = await make_file(timed, b"f")
    born = times(made)
    now = clock.tick()
    assert times(await fs.link(made.inode_id, ROOT, b"g")) == (*born[:2], now)
    now = clock.tick()
    await fs.rename(ROOT, b"g", ROOT, b"h")
    assert times(await fs.getattr(made.inode_id)) == (*born[:2], now)
    now = clock.tick()
    await fs.unlink(ROOT, b"h")
    assert times(await fs.getattr(made.inode_id)) == (*born[:2], now)
    other = await make_file(timed, b"o")
    now = clock.tick()
    await fs.rename(ROOT, b"f", ROOT, b"o", RENAME_EXCHANGE)
    assert (await fs.getattr(made.inode_id)).ctime_ns == now
    assert (await fs.getattr(other.inode_id)).ctime_ns == now


async def test_a_refused_change_marks_nothing(timed: Rig, clock: Clock) -> None:
    fs = timed.fs
    made = await make_file(timed, b"f")
    root = times(await fs.getattr(ROOT))
    clock.tick()
    with refused(errno.EEXIST):
        await fs.mkdir(ROOT, b"f", 0o755, USER)
    with refused(errno.ENOENT):
        await fs.unlink(ROOT, b"missing")
    await fs.rename(ROOT, b"f", ROOT, b"f")
    assert times(await fs.getattr(ROOT)) == root
    assert times(await fs.getattr(made.inode_id)) == times(made)


async def test_a_lookup_of_a_missing_name_answers_nothing(rig: Rig) -> None:
    assert await rig.fs.lookup(ROOT, b"missing") is None
    made = await make_file(rig, b"f")
    assert await rig.fs.lookup(made.inode_id, b"x") is None
