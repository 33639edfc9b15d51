"""A mount's parts, put together without a kernel and without a server: what ends it, and what is left."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3blobfs import app
from s3blobfs.app import run_mount
from s3blobfs.config import MountOptions, S3Options, TierOptions
from s3blobfs.control.client import MountedVolume
from s3blobfs.control.messages import ControlError, Json
from s3blobfs.errors import (
    FilesystemError,
    IndexUnavailable,
    PermanentS3Error,
    TransientS3Error,
    UsageError,
    VolumeInUse,
    VolumeMismatch,
)
from s3blobfs.fs.attributes import Caller
from s3blobfs.fs.facade import Filesystem
from s3blobfs.fuse.extension.session import Extension
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import ROOT_INODE_ID
from s3blobfs.replica.shipper import Shipper
from s3blobfs.s3.fake import FakeObjectClient, FakeS3
from s3blobfs.tier.tier import Tier
from s3blobfs.trace import Tracer
from s3blobfs.types import Durability
from s3blobfs.volume.descriptor import VolumeDescriptor, get_descriptor
from s3blobfs.volume.lock import LockHolder, VolumeLock, find_holder
from s3blobfs.volume.making import NewVolume, make_volume_in
from s3blobfs.volume.paths import VolumePaths
from s3blobfs.writeback.reaper import Reaper
from s3blobfs.writeback.transfer import Transfer

DEADLINE_S = 20.0


class _Factory:
    """As the real one, which has connections to close."""

    def __init__(self, s3: FakeS3, tracer: Tracer) -> None:
        self._make = s3.factory(tracer)
        self.closed = False

    def __call__(self, bucket: str) -> object:
        return self._make(bucket)

    def beside(self, bucket: str) -> object:
        return self._make(bucket)

    async def aclose(self) -> None:
        self.closed = True


class Mount:
    """Runs a mount whose FUSE session is :attr:`session`."""

    def __init__(self, directory: Path, s3: FakeS3) -> None:
        self.s3 = s3
        self.paths = VolumePaths(directory / "index.db")
        self.factories: list[_Factory] = []
        self.filesystem: Filesystem | None = None
        self.unmounted = trio.Event()
        self.ready = trio.Event()
        self.options = MountOptions(
            mountpoint=directory / "mnt", index_path=self.paths.index, tier=TierOptions(self.paths.tier)
        )
        self.descriptor: VolumeDescriptor | None = None

    async def make(self, durability: Durability = Durability.S3) -> None:
        client = self.s3.client("bucket")
        new = NewVolume(
            "bucket", "", S3Options(), durability=durability, create_bucket=True, index_path=self.paths.index
        )
        await make_volume_in(client, new, Tracer())
        self.descriptor = await get_descriptor(client, "")

    def make_factory(self, _: S3Options, tracer: Tracer) -> _Factory:
        self.factories.append(_Factory(self.s3, tracer))
        return self.factories[-1]

    async def serve(
        self,
        filesystem: Filesystem,
        _: MountOptions,
        source: str,
        extension: Extension,
        on_ready: Callable[[], None],
    ) -> None:
        assert source == "s3://bucket/"
        self.filesystem = filesystem
        on_ready()
        await self.unmounted.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        assert self.descriptor is not None

        def ready() -> None:
            self.ready.set()
            task_status.started()

        with trio.fail_after(DEADLINE_S):
            await run_mount(self.descriptor, self.options, ready)

    async def write(self, name: bytes, content: bytes) -> None:
        assert self.filesystem is not None
        opened, _ = await self.filesystem.create(ROOT_INODE_ID, name, 0o644, os.O_WRONLY, Caller(0, 0))
        await self.filesystem.write(opened.handle, 0, content)
        await self.filesystem.flush(opened.handle)
        await self.filesystem.release(opened.handle)

    async def read(self, name: bytes) -> bytes:
        assert self.filesystem is not None
        found = await self.filesystem.lookup(ROOT_INODE_ID, name)
        assert found is not None
        opened = await self.filesystem.open(found.inode_id, os.O_RDONLY)
        data = bytes(await self.filesystem.read(opened.handle, 0, 100))
        await self.filesystem.release(opened.handle)
        return data

    def check_over(self) -> None:
        """Nothing is held or left open."""
        assert find_holder(self.paths.lock) is None
        assert not self.paths.control_socket.exists()
        assert all(factory.closed for factory in self.factories)
        VolumeLock(self.paths.lock, LockHolder.this_process("test")).release()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    mount = Mount(tmp_path, FakeS3())
    monkeypatch.setattr(app, "make_client_factory", mount.make_factory)
    monkeypatch.setattr(app, "serve", mount.serve)
    monkeypatch.setattr(app, "terminate", lambda: mount.unmounted.set())
    return mount


async def keys(mount: Mount) -> list[str]:
    return [info.key async for info in mount.s3.client("bucket").list_objects("")]


async def test_ends_when_it_is_unmounted(mount: Mount) -> None:
    await mount.make(Durability.DISK)
    async with trio.open_nursery() as nursery:
        await nursery.start(mount.run)
        holder = find_holder(mount.paths.lock)
        assert holder is not None and holder.pid == os.getpid()
        await mount.write(b"a", b"foo")
        mount.unmounted.set()
    mount.check_over()
    stored = [key for key in await keys(mount) if not key.startswith(".s3blobfs/index/")]
    assert stored == [".s3blobfs/volume.json", "acbd18db4cc2f85cedef654fccc4a4d8"]


async def test_those_who_wait_for_the_unmount_are_told_when_the_lock_is_free(mount: Mount) -> None:
    await mount.make()
    volume = MountedVolume(mount.options.mountpoint, mount.paths.control_socket)
    outcome: list[object] = []

    def wait() -> None:
        with volume.begin("unmount") as conversation:
            conversation.wait_for_progress()
            trio.from_thread.run_sync(mount.unmounted.set)
            outcome.append(conversation.wait(lambda _: None))
            outcome.append(find_holder(mount.paths.lock))

    async with trio.open_nursery() as nursery:
        await nursery.start(mount.run)
        await trio.to_thread.run_sync(wait)
    assert outcome == [{"files_left": 0, "bytes_left": 0}, None]


@pytest.mark.parametrize("part", [Tier, Database])
async def test_part_that_fails_ends_the_mount(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, part: type[object]
) -> None:
    await mount.make()

    async def run(_: object, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await mount.ready.wait()
        raise IndexUnavailable("the disk is gone")

    monkeypatch.setattr(part, "run", run)
    with pytest.raises(IndexUnavailable, match="the disk is gone"):
        await mount.run()
    mount.check_over()


@pytest.mark.expected_log("^uploads ended by a bug")
async def test_bug_in_an_upload_leaves_the_mount_to_its_readers(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays mounted and takes no changes; what was acknowledged is for the next mount."""
    await mount.make(Durability.DISK)

    async def stumble(*_: object) -> None:
        raise ZeroDivisionError

    async def expect_failure(task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(UsageError, match=r"1 files stay in .*uploads ended by a bug.*mount again"):
            await mount.run(task_status)

    volume = MountedVolume(mount.options.mountpoint, mount.paths.control_socket)
    async with trio.open_nursery() as nursery:
        await nursery.start(expect_failure)
        await mount.write(b"before", b"stored")
        assert mount.filesystem is not None
        await mount.filesystem.sync(None, None)
        with monkeypatch.context() as patching:
            patching.setattr(Transfer, "commit", stumble)
            await mount.write(b"acknowledged", b"foo")
            with pytest.raises(TransientS3Error, match="staged for the next mount"):
                await mount.filesystem.sync(None, None)
        with pytest.raises(FilesystemError) as refused:
            await mount.write(b"after", b"bar")
        assert refused.value.errno == errno.EROFS
        assert await mount.read(b"before") == b"stored"
        assert await mount.read(b"acknowledged") == b"foo"
        status = await trio.to_thread.run_sync(volume.call, "status")
        assert "ended by a bug" in status["mount"]["given_up"]
        mount.unmounted.set()
    mount.check_over()
    mount.unmounted = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(mount.run)
        assert await mount.read(b"acknowledged") == b"foo"
        mount.unmounted.set()
    assert "acbd18db4cc2f85cedef654fccc4a4d8" in await keys(mount)


@pytest.mark.expected_log("ended by a bug")
@pytest.mark.parametrize(
    ("part", "what"), [(Reaper, "the deletion of objects"), (Shipper, "the copy of the index")]
)
async def test_bug_beside_the_uploads_leaves_the_mount_to_its_readers(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, part: type[object], what: str
) -> None:
    await mount.make()
    stumbled = trio.Event()

    async def run(_: object, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await stumbled.wait()
        raise ZeroDivisionError

    async def expect_failure(task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(UsageError, match=rf"0 files stay in .*{what} ended by a bug"):
            await mount.run(task_status)

    monkeypatch.setattr(part, "run", run)
    async with trio.open_nursery() as nursery:
        await nursery.start(expect_failure)
        await mount.write(b"before", b"stored")
        stumbled.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(FilesystemError) as refused:
            await mount.write(b"after", b"bar")
        assert refused.value.errno == errno.EROFS
        assert await mount.read(b"before") == b"stored"
        mount.unmounted.set()
    mount.check_over()


async def test_failure_is_told_to_who_waits_for_the_unmount(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mount.make()

    async def close(_: object, *, detach: bool) -> None:
        assert not detach
        raise UsageError("cannot")

    monkeypatch.setattr(Filesystem, "close", close)
    volume = MountedVolume(mount.options.mountpoint, mount.paths.control_socket)

    def wait() -> str:
        with volume.begin("unmount") as conversation:
            conversation.wait_for_progress()
            trio.from_thread.run_sync(mount.unmounted.set)
            with pytest.raises(ControlError) as caught:
                conversation.wait(lambda _: None)
            return str(caught.value)

    async def expect_failure(task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(UsageError, match="cannot"):
            await mount.run(task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(expect_failure)
        assert await trio.to_thread.run_sync(wait) == "cannot"
    mount.check_over()


@pytest.mark.expected_log("^the mount ended by a bug")
async def test_mistake_of_ours_is_not_hidden(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await mount.make()

    async def serve(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(app, "serve", serve)
    with pytest.raises(ExceptionGroup) as caught:
        await mount.run()
    assert caught.group_contains(ZeroDivisionError)
    assert "ZeroDivisionError" in caplog.text and "Traceback" in caplog.text
    mount.check_over()


async def test_refused_by_the_kernel(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    await mount.make()

    async def serve(*_: object) -> None:
        raise UsageError("no /dev/fuse")

    monkeypatch.setattr(app, "serve", serve)
    with pytest.raises(UsageError, match="no /dev/fuse"):
        await mount.run()
    mount.check_over()


async def test_signal_before_the_mount_is_usable(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    await mount.make()

    async def serve(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    monkeypatch.setattr(app, "serve", serve)
    with pytest.raises(UsageError, match="interrupted before the mount was usable"):
        await mount.run()
    mount.check_over()


@pytest.mark.expected_log("not now")
async def test_what_is_staged_after_giving_up_is_stored_by_the_next_mount(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mount.make(Durability.DISK)

    async def refuse(*_: object, **__: object) -> None:
        raise PermanentS3Error("not now")

    async def expect_giving_up(task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(UsageError, match="given up: 1 files are not in S3 yet"):
            await mount.run(task_status)

    volume = MountedVolume(mount.options.mountpoint, mount.paths.control_socket)

    def second_signal(progress: Json) -> None:
        if progress["state"] == "storing" and progress["last_error"]:
            os.kill(os.getpid(), signal.SIGTERM)

    def wait() -> None:
        with volume.begin("unmount") as conversation:
            conversation.wait_for_progress()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(ControlError, match="given up"):
                conversation.wait(second_signal)

    with monkeypatch.context() as refusing:
        refusing.setattr(FakeObjectClient, "put", refuse)
        async with trio.open_nursery() as nursery:
            await nursery.start(expect_giving_up)
            await mount.write(b"a", b"foo")
            await trio.to_thread.run_sync(wait)
    mount.check_over()
    mount.unmounted = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(mount.run)
        mount.unmounted.set()
    mount.check_over()
    assert "acbd18db4cc2f85cedef654fccc4a4d8" in await keys(mount)


async def test_volume_that_is_mounted_is_left_alone(mount: Mount) -> None:
    await mount.make()
    with (
        VolumeLock(mount.paths.lock, LockHolder.this_process("mount", Path("/mnt/there"))),
        pytest.raises(VolumeInUse, match="mounted at /mnt/there"),
    ):
        await mount.run()
    assert not mount.factories


async def test_bucket_of_another_volume(mount: Mount, tmp_path: Path) -> None:
    await mount.make()
    other = Mount(tmp_path / "other", FakeS3())
    await other.make()
    mount.descriptor = other.descriptor
    with pytest.raises(VolumeMismatch):
        await mount.run()
    mount.check_over()


async def test_trace_from_the_start_that_cannot_be_written(mount: Mount, tmp_path: Path) -> None:
    await mount.make()
    mount.options = MountOptions(
        mountpoint=tmp_path / "mnt",
        index_path=mount.paths.index,
        tier=TierOptions(mount.paths.tier),
        trace_file=tmp_path / "missing" / "trace",
    )
    with pytest.raises(UsageError, match=f"cannot write the trace .*{os.strerror(errno.ENOENT)}"):
        await mount.run()
    mount.check_over()


@pytest.mark.expected_log("and: second")
def test_several_errors_at_once(caplog: pytest.LogCaptureFixture) -> None:
    inner: Any = ExceptionGroup("", [UsageError("first")])
    group = BaseExceptionGroup("", [inner, UsageError("second")])
    assert str(app._leading(group)) == "first"
    assert caplog.messages == ["and: second"]
