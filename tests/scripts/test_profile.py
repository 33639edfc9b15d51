"""What ``scripts/bench --profile`` makes of py-spy's stacks."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from benchlib.main import main
from benchlib.profile import Shares

LOOP = "main (s3blobfs/cli/main.py:100);unrolled_run (trio/_core/_run.py:2866)"
REQUEST = f"{LOOP};_answering.<locals>.answer (s3blobfs/fuse/operations.py:41)"
STACKS = f"""\
{LOOP} 10
{REQUEST};Operations.create (s3blobfs/fuse/operations.py:207);Making.make (s3blobfs/fs/making.py:67) 40
{REQUEST};Operations.create (s3blobfs/fuse/operations.py:207);Group.write (s3blobfs/index/group.py:99) 20
{LOOP};Uploader._upload (s3blobfs/writeback/uploader.py:273);run_in_thread (s3blobfs/threads.py:55) 30
"""


def test_samples_are_summed_up_by_layer_and_by_task() -> None:
    shares = Shares.of(STACKS)
    assert shares.layers == {"trio": 10, "s3blobfs.fs": 40, "s3blobfs.index": 20, "s3blobfs.threads": 30}
    assert shares.tasks == {"event loop, threads": 10, "request create": 60, "uploading": 30}
    assert "| request create | 60% |" in shares.markdown()


def test_what_is_seldom_is_left_out() -> None:
    assert "trio" not in Shares.of(STACKS.replace(" 40", " 4000")).markdown()


def test_settings_of_the_kernel_are_not_profiled(tmp_path: Path) -> None:
    options = ["--kernel", "as-shipped", "--profile", str(tmp_path / "profile")]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 2
    assert "--profile is not for --kernel" in result.output
