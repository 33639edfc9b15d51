"""A mount by a user who is nobody in particular: through fusermount3, in the background, as root's are."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import unique_bucket_name
from tests.mount.conftest import KINDS
from tests.mount.test_semantics import fails
from tests.support.mounted import MountedVolume, mounted
from tests.support.nobody import NOBODY, become_nobody, can_become_nobody
from tests.support.servers import S3Server

TIMEOUT_S = 300.0
DATA = os.urandom(3 << 20)


@pytest.mark.skipif(not can_become_nobody(), reason="needs root, who can become another user")
@pytest.mark.parametrize("extension", ["auto", "off"])
def test_a_mount_by_an_unprivileged_user(weed_server: S3Server, extension: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="s3blobfs-"))  # pytest's own is closed to others
    directory.chmod(0o711)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.mount.test_unprivileged"),
            *(directory, weed_server.endpoint_url, extension),
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **weed_server.environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    directory.rmdir()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines()[-1] == "done as nobody"


def _work(directory: Path, endpoint_url: str, extension: str) -> None:
    become_nobody(directory)
    assert os.getresuid() == (NOBODY, NOBODY, NOBODY) and os.getgroups() == []
    environ = os.environ
    environ["HOME"] = environ["TMPDIR"] = str(directory)
    server = S3Server("weed", endpoint_url, environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"])
    volume = MountedVolume(
        server,
        unique_bucket_name(),
        directory / "volume",
        mkfs_options=KINDS["digest-cached"],
        mount_options=["--fuse-extension", extension],
    )
    with mounted(volume):
        _use(volume, extension)
        volume.remount()
        assert (volume.mountpoint / "renamed").read_bytes() == DATA
    print("done as nobody")


def _use(volume: MountedVolume, extension: str) -> None:
    status = json.loads(volume.command("status", volume.mountpoint, "--json").stdout)["mount"]
    assert status["fuse_extension"].startswith({"auto": "full", "off": "off"}[extension]), status
    assert status["passthrough"].startswith("off"), status
    root = volume.mountpoint
    assert (root.stat().st_uid, root.stat().st_gid) == (NOBODY, NOBODY)
    (root / "d").mkdir()
    path = root / "d" / "f"
    path.write_bytes(DATA)
    assert path.read_bytes() == DATA
    assert path.stat().st_uid == NOBODY
    path.rename(root / "renamed")
    subprocess.run(["cp", "-a", root / "renamed", path], check=True)
    assert path.read_bytes() == DATA
    path.unlink()
    (root / "d").rmdir()
    assert os.listdir(root) == ["renamed"]
    with fails(errno.EPERM):
        os.chown(root / "renamed", 0, 0)


if __name__ == "__main__":
    _work(Path(sys.argv[1]), *sys.argv[2:])
