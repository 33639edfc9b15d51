"""Files that the kernel reads by itself, on a real mount: what programs see of each other's changes."""

from __future__ import annotations

import errno
import faulthandler
import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import NewVolume, new_volume, remount_cold
from tests.support.mounted import MountedVolume
from tests.support.servers import S3Server

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse and the right to mount"
)

SIZE = 1 << 20
DATA = random.Random(1).randbytes(SIZE)
WAIT_S = 60.0


@pytest.fixture(scope="module", params=["digest-cached", "versioned-cached"])
def volume(request: pytest.FixtureRequest, weed_server: S3Server) -> Iterator[MountedVolume]:
    with new_volume(weed_server, request.param, mount=["--passthrough", "4096"]) as made:
        status = json.loads(made.command("status", made.mountpoint, "--json").stdout)
        if status["mount"]["passthrough"] != "on":
            pytest.skip(f"passthrough is {status['mount']['passthrough']}")
        yield made


def status(volume: MountedVolume) -> Any:
    return json.loads(volume.command("status", volume.mountpoint, "--json").stdout)


def lent_files(volume: MountedVolume) -> int:
    return int(status(volume)["filesystem"]["lent_files"])


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Opened:
    """A descriptor, closed at the end of the block."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.fd = os.open(path, flags)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def make(path: Path, data: bytes = DATA) -> Path:
    path.write_bytes(data)
    return path


def test_reads_do_not_come_to_the_server(volume: MountedVolume, here: Path) -> None:
    path = make(here / "f")
    with Opened(path) as one, Opened(path) as other:
        assert lent_files(volume) == 1
        before = status(volume)["counts"]
        assert os.pread(one, SIZE, 0) == os.pread(other, SIZE, 0) == DATA
        with mmap.mmap(one, SIZE, prot=mmap.PROT_READ) as mapping:
            assert mapping[:] == DATA
        assert os.fstat(one).st_size == SIZE
        after = status(volume)["counts"]
        assert {name: after.get(name, 0) for name in before if name.startswith("s3.")} == {
            name: count for name, count in before.items() if name.startswith("s3.")
        }
    until(lambda: lent_files(volume) == 0)


def test_a_reader_sees_what_writers_do(volume: MountedVolume, here: Path) -> None:
    path = make(here / "f")
    with Opened(path) as reader:
        with Opened(path, os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"appended")
            assert os.pread(reader, 100, SIZE) == b"appended"
            assert os.fstat(reader).st_size == SIZE + 8
        with Opened(path, os.O_RDWR) as writer:
            os.pwrite(writer, b"over", 1000)
            assert os.pread(reader, 4, 1000) == b"over" == os.pread(writer, 4, 1000)
            os.ftruncate(writer, 2000)
            assert os.pread(reader, SIZE, 1000) == b"over" + DATA[1004:2000]
            os.posix_fallocate(writer, 0, 3000)
            assert os.pread(reader, SIZE, 2000) == bytes(1000)
        os.truncate(path, 10)
        assert os.pread(reader, SIZE, 0) == DATA[:10]
        path.write_bytes(b"all new")
        assert os.pread(reader, SIZE, 0) == b"all new"
        subprocess.run(["cp", make(here / "g"), path], check=True)
        assert os.pread(reader, 2 * SIZE, 0) == DATA
        volume.command("cp", make(here / "h", DATA[::-1]), path)
        assert os.pread(reader, 2 * SIZE, 0) == DATA[::-1]
    assert path.read_bytes() == DATA[::-1]
    remount_cold(volume)
    assert path.read_bytes() == DATA[::-1]


def test_mappings_of_readers_and_writers_are_one(volume: MountedVolume, here: Path) -> None:
    path = make(here / "f")
    with Opened(path) as reader, Opened(path, os.O_RDWR) as writer:
        of_reader = mmap.mmap(reader, SIZE, prot=mmap.PROT_READ)
        of_writer = mmap.mmap(writer, SIZE)
        of_writer[5000:5005] = b"store"
        assert of_reader[5000:5005] == b"store" == os.pread(reader, 5, 5000) == os.pread(writer, 5, 5000)
        os.pwrite(writer, b"write", 9000)
        assert of_reader[9000:9005] == b"write" == of_writer[9000:9005]
    # Both descriptors are closed.
    of_writer[6000:6005] = b"later"
    assert of_reader[6000:6005] == b"later"
    assert path.read_bytes()[6000:6005] == b"later"
    with Opened(path, os.O_RDWR) as writer:
        os.pwrite(writer, b"again", 7000)
        assert of_reader[7000:7005] == b"again" == of_writer[7000:7005]
    of_writer[8000:8005] = b"final"
    of_writer.close()
    of_reader.close()
    until(lambda: lent_files(volume) == 0)
    expected = bytearray(DATA)
    for offset, what in (
        (5000, b"store"),
        (6000, b"later"),
        (7000, b"again"),
        (8000, b"final"),
        (9000, b"write"),
    ):
        expected[offset : offset + 5] = what
    assert path.read_bytes() == expected
    remount_cold(volume)
    assert path.read_bytes() == expected


def test_files_with_the_same_content(volume: MountedVolume, here: Path) -> None:
    one, other = make(here / "one"), make(here / "other")
    with Opened(one) as of_one, Opened(other) as of_other, Opened(one, os.O_RDWR) as writer:
        os.pwrite(writer, b"changed", 0)
        assert os.pread(of_one, 7, 0) == b"changed"
        assert os.pread(of_other, SIZE, 0) == DATA
        with Opened(other, os.O_WRONLY) as second:
            os.pwrite(second, b"CHANGED", 0)
            assert os.pread(of_other, 7, 0) == b"CHANGED"
    assert one.read_bytes() == b"changed" + DATA[7:]
    assert other.read_bytes() == b"CHANGED" + DATA[7:]


def test_removed_and_replaced_while_it_is_open(volume: MountedVolume, here: Path) -> None:
    path = make(here / "f")
    with Opened(path) as reader, Opened(path, os.O_RDWR) as writer:
        path.unlink()
        os.pwrite(writer, b"changed", 0)
        assert os.pread(reader, 7, 0) == b"changed"
    assert not path.exists()
    path = make(here / "f")
    with Opened(path) as reader:
        make(here / "g", b"other" * 2000).rename(path)
        assert os.pread(reader, SIZE, 0) == DATA
        assert path.read_bytes() == b"other" * 2000
    until(lambda: lent_files(volume) == 0)
    assert status(volume)["tier"]["staged_files"] == 0


def test_a_program_is_run_and_a_file_locked(volume: MountedVolume, here: Path) -> None:
    program = make(here / "true", Path("/bin/true").read_bytes())
    program.chmod(0o755)
    subprocess.run([program], check=True)
    with Opened(program) as reader, Opened(program, os.O_RDWR) as writer:
        os.lockf(writer, os.F_TLOCK, 0)
        assert os.pread(reader, 4, 0) == b"\x7fELF"


def test_the_cache_gives_way_around_what_is_lent(own_volume: NewVolume) -> None:
    with own_volume("digest-cached", mount=["--passthrough", "4096", "--cache-size", "8M"]) as volume:
        path = make(volume.mountpoint / "f")
        with Opened(path) as reader, Opened(path, os.O_RDWR) as writer:
            for number in range(20):
                make(volume.mountpoint / "other", random.Random(number).randbytes(SIZE))
                (volume.mountpoint / "other").read_bytes()
            assert os.pread(reader, SIZE, 0) == DATA
            os.pwrite(writer, b"x", 0)
            assert os.pread(reader, 1, 0) == b"x"
        assert path.read_bytes() == b"x" + DATA[1:]


@pytest.mark.parametrize("durability", ["s3", "disk"])
def test_killed_in_the_middle(own_volume: NewVolume, durability: str) -> None:
    options = ["--passthrough", "4096", "--durability", durability]
    with own_volume("versioned-cached", mount=options) as volume:
        names = "closed", "synced", "stored", "stored later"
        paths = [make(volume.mountpoint / name, DATA + name.encode()) for name in names]
        volume.command("sync", volume.mountpoint)
        readers = [os.open(path, os.O_RDONLY) for path in paths]
        writers = [os.open(path, os.O_RDWR) for path in paths]
        assert lent_files(volume) == len(paths)
        mappings = [mmap.mmap(writer, SIZE) for writer in writers]
        pid = volume.pid  # before anything is written: a command closes its copies of the descriptors
        for writer, mapping in zip(writers, mappings, strict=True):
            os.pwrite(writer, b"written", 0)
            mapping[5000:5006] = b"stored"
        os.close(writers[0])
        os.fsync(writers[1])
        mappings[2].flush()  # msync(2), of which the kernel tells nobody
        os.close(writers[3])
        mappings[3][9000:9005] = b"later"
        mappings[3].flush()
        volume.kill_process(pid)
        until(lambda: not Path(f"/proc/{pid}/fd/0").exists())
        assert os.pread(readers[2], 7, 0) == b"written"  # the kernel goes on by itself
        for mapping in mappings:
            mapping.close()
        for fd in (*readers, *writers[1:3]):
            try:
                os.close(fd)
            except OSError as error:
                assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        volume.bury(pid)
        volume.mount()
        changed = b"written" + DATA[7:5000] + b"stored" + DATA[5006:]
        expected = [changed + name.encode() for name in names]
        expected[3] = changed[:9000] + b"later" + changed[9005:] + b"stored later"
        assert [path.read_bytes() for path in paths] == expected
        remount_cold(volume)
        assert [path.read_bytes() for path in paths] == expected
        volume.umount()
        assert list(volume.tier.glob("staging/*")) == []


def test_without_the_privilege_it_is_left_out(own_volume: NewVolume, tmp_path: Path) -> None:
    """And where it is not wanted; ``status`` says so."""
    with own_volume("digest-cached", mount=["--passthrough", "off"]) as volume:
        assert status(volume)["mount"]["passthrough"] == "off (it is not wanted)"
        path = make(volume.mountpoint / "f")
        with Opened(path) as reader, Opened(path, os.O_WRONLY) as writer:
            os.pwrite(writer, b"changed", 0)
            assert os.pread(reader, SIZE, 0) == b"changed" + DATA[7:]
        assert lent_files(volume) == 0
        volume.remount("--passthrough", "1M", "--fuse-extension", "init")
        assert status(volume)["mount"]["passthrough"] == "off (it takes all of the extension)"


# -- many at a time ------------------------------------------------------------------------------------

BLOCK = 4096
BLOCKS = 16


def _stamped(number: int) -> bytes:
    return b"%016d" % number * (BLOCK // 16)


def _work(paths: list[Path], seed: int, seconds: float) -> None:
    """Writes and reads whole blocks, and checks that each is one that somebody wrote, or zeros."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            _step(paths, seed, chance)
        except OSError as error:
            # Replaced between the kernel's lookup and its open, and again when it tried a second time.
            assert error.errno == errno.ESTALE, error


def _step(paths: list[Path], seed: int, chance: random.Random) -> None:
    path, block = chance.choice(paths), chance.randrange(BLOCKS)
    action = chance.randrange(8)
    if action < 3:
        with Opened(path) as fd:
            data = os.pread(fd, BLOCK, block * BLOCK)
            assert len(data) % BLOCK == 0, len(data)
            assert set(data) <= set(b"0123456789\0"), data
    elif action == 3:
        with Opened(path, chance.choice([os.O_WRONLY, os.O_RDWR])) as fd:
            os.pwrite(fd, _stamped(chance.randrange(10**9)), block * BLOCK)
            if chance.random() < 0.2:
                os.fsync(fd)
    elif action == 4:
        os.truncate(path, (block + 1) * BLOCK)
    elif action == 5:
        subprocess.run(["cp", chance.choice(paths), path], capture_output=True, check=False)
    elif action == 6:
        temporary = path.with_name(f"new-{seed}")
        temporary.write_bytes(_stamped(seed) * BLOCKS)
        temporary.rename(path)
    else:
        child = os.fork()
        if child == 0:
            _store(path, block)
        os.waitpid(child, 0)


def _store(path: Path, block: int) -> None:
    """In a process of its own: what is cut meanwhile ends it with SIGBUS."""
    faulthandler.disable()
    try:
        with Opened(path, os.O_RDWR) as fd:
            if os.fstat(fd).st_size < (block + 1) * BLOCK:
                os._exit(0)
            mapping = mmap.mmap(fd, (block + 1) * BLOCK)
        time.sleep(random.random() / 50)
        mapping[block * BLOCK : (block + 1) * BLOCK] = _stamped(block)
    except ValueError:
        os._exit(0)  # it was cut before it was mapped
    except OSError as error:
        os._exit(error.errno or 1)
    os._exit(0)


@pytest.mark.parametrize("passthrough", ["1", "off"])
def test_processes_at_work_on_the_same_few_files(own_volume: NewVolume, passthrough: str) -> None:
    seconds = float(os.environ.get("S3BLOBFS_STRESS_S", "5"))
    with own_volume("digest-cached", mount=["--passthrough", passthrough]) as volume:
        paths = [make(volume.mountpoint / f"f{number}", _stamped(number) * BLOCKS) for number in range(3)]
        children = []
        for seed in range(4):
            child = os.fork()
            if child == 0:
                try:
                    _work(paths, seed, seconds)
                except BaseException as error:
                    print(f"worker {seed}: {error!r}", file=sys.stderr)
                    os._exit(1)
                os._exit(0)
            children.append(child)
        results = [os.waitpid(child, 0)[1] for child in children]
        assert results == [0] * len(children)
        until(lambda: lent_files(volume) == 0)
        contents = [path.read_bytes() for path in paths]
        remount_cold(volume)
        assert [path.read_bytes() for path in paths] == contents
