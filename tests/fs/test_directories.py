"""Listings: pages, cookies that stay good, directories removed while open."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from s3blobfs.fs.listing import DIRECTORY_PAGE_ENTRIES, DirectoryEntry
from tests.fs.calls import make_file, names, refused
from tests.support.rig import ROOT, USER, Rig


async def make_many(rig: Rig, count: int, parent: int = ROOT) -> list[bytes]:
    made = [b"n%05d" % number for number in range(count)]
    for name in made:
        await rig.fs.mknod(parent, name, 0o600, 0, USER)
    return made


async def rest(rig: Rig, handle: int, after: int) -> list[DirectoryEntry]:
    """Everything behind a cookie."""
    found: list[DirectoryEntry] = []
    while page := await rig.fs.readdir(handle, after):
        found += page
        after = page[-1].cookie
    return found


async def test_an_empty_directory_has_its_dots(rig: Rig) -> None:
    made = await rig.fs.mkdir(ROOT, b"d", 0o755, USER)
    handle = await rig.fs.opendir(made.inode_id)
    page = await rig.fs.readdir(handle, 0)
    assert [(entry.name, entry.attributes.inode_id) for entry in page] == [
        (b".", made.inode_id),
        (b"..", ROOT),
    ]
    assert await rig.fs.readdir(handle, page[-1].cookie) == []
    assert [entry.name for entry in await rig.fs.readdir(handle, page[0].cookie)] == [b".."]
    await rig.fs.releasedir(handle)


async def test_the_root_is_its_own_parent(rig: Rig) -> None:
    handle = await rig.fs.opendir(ROOT)
    page = await rig.fs.readdir(handle, 0)
    assert [entry.attributes.inode_id for entry in page] == [ROOT, ROOT]
    await rig.fs.releasedir(handle)


async def test_a_listing_tells_types_and_attributes(rig: Rig) -> None:
    await rig.write_file(b"file", b"12345")
    await rig.fs.mkdir(ROOT, b"dir", 0o700, USER)
    await rig.fs.symlink(ROOT, b"link", b"target", USER)
    await rig.fs.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, USER)
    handle = await rig.fs.opendir(ROOT)
    listed = {entry.name: entry.attributes for entry in await rest(rig, handle, 2)}
    for name, attributes in listed.items():
        assert attributes == await rig.fs.lookup(ROOT, name)
    assert stat.S_ISFIFO(listed[b"fifo"].mode)
    assert listed[b"file"].size_bytes == 5
    await rig.fs.releasedir(handle)


async def test_a_listing_shows_what_is_being_written(rig: Rig) -> None:
    opened, _ = await rig.fs.create(ROOT, b"f", 0o644, os.O_WRONLY, USER)
    await rig.fs.write(opened.handle, 0, b"x" * 99)
    handle = await rig.fs.opendir(ROOT)
    (entry,) = await rest(rig, handle, 2)
    assert entry.attributes.size_bytes == 99
    await rig.fs.releasedir(handle)
    await rig.fs.release(opened.handle)


@pytest.mark.parametrize(
    "count",
    [
        DIRECTORY_PAGE_ENTRIES - 2,
        DIRECTORY_PAGE_ENTRIES - 1,
        DIRECTORY_PAGE_ENTRIES,
        DIRECTORY_PAGE_ENTRIES + 1,
        2 * DIRECTORY_PAGE_ENTRIES + 100,
    ],
)
async def test_more_entries_than_a_page_holds(rig: Rig, count: int) -> None:
    made = await make_many(rig, count)
    assert await names(rig) == made
    handle = await rig.fs.opendir(ROOT)
    cookies = [entry.cookie for entry in await rest(rig, handle, 0)]
    assert len(set(cookies)) == len(cookies) == count + 2
    await rig.fs.releasedir(handle)


async def test_any_cookie_continues_behind_its_entry(rig: Rig) -> None:
    await make_many(rig, 20)
    handle = await rig.fs.opendir(ROOT)
    everything = await rest(rig, handle, 0)
    for position, entry in enumerate(everything):
        behind = await rest(rig, handle, entry.cookie)
        assert [each.name for each in behind] == [each.name for each in everything[position + 1 :]]
    await rig.fs.releasedir(handle)


async def test_cookies_stay_good_while_entries_come_and_go(rig: Rig) -> None:
    count = 2 * DIRECTORY_PAGE_ENTRIES
    made = await make_many(rig, count)
    handle = await rig.fs.opendir(ROOT)
    first = await rig.fs.readdir(handle, 0)
    seen = [entry.name for entry in first]
    last = first[-1]
    # What was listed goes, the entry of the cookie itself too; what was not listed yet goes; new ones come.
    gone = {made[0], made[5], last.name, made[-1], made[count - 50]}
    for name in gone:
        await rig.fs.unlink(ROOT, name)
    for number in range(30):
        await rig.fs.mknod(ROOT, b"new%d" % number, 0o600, 0, USER)
    renamed = made[count - 20]
    await rig.fs.rename(ROOT, renamed, ROOT, b"renamed")
    listed = [entry.name for entry in await rest(rig, handle, last.cookie)]
    seen += listed
    assert len(seen) == len(set(seen))
    stayed = set(made) - gone - {renamed}
    assert stayed <= set(seen)
    assert not {made[-1], made[count - 50]} & set(listed)
    await rig.fs.releasedir(handle)


async def test_a_whole_directory_can_be_removed_while_it_is_listed(rig: Rig) -> None:
    """As ``rm -r`` does."""
    directory = (await rig.fs.mkdir(ROOT, b"d", 0o755, USER)).inode_id
    await make_many(rig, 3 * DIRECTORY_PAGE_ENTRIES, directory)
    handle = await rig.fs.opendir(directory)
    after = 0
    while page := await rig.fs.readdir(handle, after):
        after = page[-1].cookie
        for entry in page:
            if entry.name not in (b".", b".."):
                await rig.fs.unlink(directory, entry.name)
    await rig.fs.rmdir(ROOT, b"d")
    await rig.fs.releasedir(handle)
    assert await names(rig) == []


async def test_a_directory_removed_while_open_is_empty(rig: Rig) -> None:
    directory = (await rig.fs.mkdir(ROOT, b"d", 0o755, USER)).inode_id
    handle = await rig.fs.opendir(directory)
    await rig.fs.rmdir(ROOT, b"d")
    assert [entry.name for entry in await rest(rig, handle, 0)] == [b".", b".."]
    assert (await rig.fs.getattr(directory)).nlink == 0
    with refused(errno.ENOENT):
        await rig.fs.mkdir(directory, b"x", 0o755, USER)
    await rig.fs.releasedir(handle)
    await rig.fs.forget([(directory, 1)])
    with refused(errno.ESTALE):
        await rig.fs.getattr(directory)


async def test_a_directory_moved_while_open_goes_on(rig: Rig) -> None:
    directory = (await rig.fs.mkdir(ROOT, b"d", 0o755, USER)).inode_id
    other = (await rig.fs.mkdir(ROOT, b"other", 0o755, USER)).inode_id
    made = await make_many(rig, 5, directory)
    handle = await rig.fs.opendir(directory)
    await rig.fs.rename(ROOT, b"d", other, b"d")
    listed = await rest(rig, handle, 0)
    assert [entry.name for entry in listed[2:]] == made
    assert listed[1].attributes.inode_id == other
    await rig.fs.releasedir(handle)


async def test_entries_taken_by_the_kernel_are_references_to_what_is_in_core(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.link(made.inode_id, ROOT, b"g")
    handle = await rig.fs.opendir(ROOT)
    rig.fs.refer(await rest(rig, handle, 0))  # two names of it
    await rig.fs.releasedir(handle)
    await rig.fs.forget([(made.inode_id, 3)])
    assert rig.fs.status().inodes_in_core == 2  # with the root, to which the dots are no reference
    await rig.fs.forget([(made.inode_id, 1)])
    assert rig.fs.status().inodes_in_core == 1


async def test_a_listing_brings_nothing_into_core(rig: Rig) -> None:
    made = await make_file(rig, b"f")
    await rig.fs.forget([(made.inode_id, 1)])
    handle = await rig.fs.opendir(ROOT)
    listed = await rest(rig, handle, 2)
    rig.fs.refer(listed)
    assert [entry.attributes for entry in listed] == [made]
    assert rig.fs.status().inodes_in_core == 1  # of the open directory
    await rig.fs.releasedir(handle)
    # The kernel refers to it all the same: by its id alone, and also when its last name is gone.
    assert await rig.fs.getattr(made.inode_id) == made
    await rig.fs.forget([(ROOT, 1)])
    await rig.fs.unlink(ROOT, b"f")
    assert (await rig.fs.getattr(made.inode_id)).nlink == 0
    await rig.fs.forget([(made.inode_id, 1)])
    with refused(errno.ESTALE):
        await rig.fs.getattr(made.inode_id)


async def test_a_listing_says_what_the_index_does_not_know_yet(rig: Rig) -> None:
    opened, made = await rig.fs.create(ROOT, b"f", 0o644, os.O_RDWR, USER)
    await rig.fs.write(opened.handle, 0, b"12345")
    handle = await rig.fs.opendir(ROOT)
    (entry,) = await rest(rig, handle, 2)
    assert entry.attributes == await rig.fs.getattr(made.inode_id)
    assert entry.size_bytes == 5
    await rig.fs.releasedir(handle)
    await rig.fs.flush(opened.handle)
    await rig.fs.release(opened.handle)


async def test_handles_of_directories_are_refused_once_closed(rig: Rig) -> None:
    handle = await rig.fs.opendir(ROOT)
    await rig.fs.releasedir(handle)
    with refused(errno.EBADF):
        await rig.fs.readdir(handle, 0)
    with refused(errno.EBADF):
        await rig.fs.releasedir(handle)


async def test_a_page_is_as_long_as_it_is_asked_for(rig: Rig) -> None:
    made = await make_many(rig, 40)
    handle = await rig.fs.opendir(ROOT)
    seen: list[bytes] = []
    cookie = 0
    while entries := await rig.fs.readdir(handle, cookie, 8):
        assert len(entries) <= 8 + 2  # and the dots
        seen += [entry.name for entry in entries]
        cookie = entries[-1].cookie
    assert seen == [b".", b"..", *made]
    await rig.fs.releasedir(handle)
