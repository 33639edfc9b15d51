"""The command's frame: help, versions, exit codes, and one line for each error."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest

from s3blobfs import __version__
from s3blobfs.cli import main
from s3blobfs.cli.failure import line_of
from s3blobfs.cli.main import COMMANDS, cli, run
from s3blobfs.errors import AccessDenied, BucketNotFound, FilesystemError, PermanentS3Error, UsageError


def every_command(command: click.Command = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            found += every_command(below, (*path, name))
    return found


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["trace", "/mnt", *path[1:]] if path[:1] == ("trace",) and path[1:] else [*path]
    assert run([*arguments, "--help"]) == 0
    shown = capsys.readouterr()
    usage = shown.out.splitlines()[0].split()
    assert usage[:2] == ["Usage:", "s3blobfs"]
    assert [word for word in usage[2:] if word in path] == [*path]
    assert max(map(len, shown.out.splitlines())) <= 100
    assert shown.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_given(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run([name, "--help"])
    assert name in ("umount", "store") or "Example" in capsys.readouterr().out


def test_list_of_commands_needs_none_of_them() -> None:
    code = "import sys; from s3blobfs.cli.main import run; run(['--help']); print('boto3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"s3blobfs {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format"], "No such command 'format'"),
        (["mkfs"], "Missing argument 's3://BUCKET[/PREFIX]'"),
        (["mkfs", "bucket"], "not an S3 address: 'bucket'; write s3://BUCKET"),
        (["mkfs", "s3://B"], "not an S3 address"),
        (["mkfs", "s3://bucket/a//b"], "has an empty"),
        (["mkfs", "s3://bucket", "--mode", "x"], "'x' is not one of 'digest', 'versioned'"),
        (["mkfs", "s3://bucket", "--endpoint-url", "ftp://x"], "not an http:// or https:// address"),
        (["mkfs", "s3://bucket", "--endpoint-url", "http://me:secret@x"], "an address holds no credentials"),
        (["mkfs", "s3://bucket", "--sse-s3", "--sse-kms-key-id", "k"], "exclude each other"),
        (["mount", "s3://bucket", "/mnt", "--cache-size", "much"], "not a size: 'much'"),
        (["recover", "s3://bucket", "--at", "noon"], "not a time: 'noon'"),
        (["recover", "s3://bucket", "--from-objects", "--partial"], "excludes --at and --partial"),
        (["recover", "s3://bucket", "--mode", "digest"], "--durability are for --from-objects"),
        (["mount", "s3://bucket", "/mnt", "-o", "cache_size=much"], "not a size: 'much'"),
        (["mount", "s3://bucket", "/mnt", "-o", "ro=1"], "'ro' takes no value"),
        (["mount", "s3://bucket", "/mnt", "-o", "cache_size"], "'cache_size' needs a value"),
        (["mount", "s3://bucket", "/mnt", "-o", "umask=0"], "unknown option 'umask'; known are"),
        (["mount", "s3://bucket", "/mnt", "-o", "foreground"], "unknown option 'foreground'"),
        (["s3://bucket"], "Missing argument 'MOUNTPOINT'"),
        (["store"], "Usage: s3blobfs store"),
        (["trace", "/mnt", "draw"], "No such command 'draw'"),
    ],
)
def test_misuse_is_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "secret" not in shown.err


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """The arguments of a command that raises ``error``."""

    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(main.LazyGroup, "get_command", lambda *_: fail)
    return ["fail"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("two\nlines"), "two lines"),
        (ExceptionGroup("", [ExceptionGroup("", [UsageError("inner")])]), "inner"),
        (FilesystemError(errno.ENOSPC, "x"), "No space left on device: x"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "a: No such file or directory"),
        (
            AccessDenied("no", code="SignatureDoesNotMatch"),
            "no (SignatureDoesNotMatch); check the credentials",
        ),
        (AccessDenied("no", code="AccessDenied"), "no (AccessDenied); these credentials need s3:ListBucket"),
        (BucketNotFound("no", code="NoSuchBucket"), "no (NoSuchBucket); check its name"),
        (PermanentS3Error("cannot establish TLS"), "cannot establish TLS; with --ca-bundle FILE"),
        (ZeroDivisionError("x"), "internal error (ZeroDivisionError: x); 's3blobfs --debug …' shows where"),
    ],
)
def test_error_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    assert run(failing(monkeypatch, error)) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"s3blobfs: {line}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup(
            "of a nursery", [ExceptionGroup("of another", [ValueError()]), KeyboardInterrupt()]
        ),
    ],
)
def test_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    assert run(failing(monkeypatch, error)) == 130
    assert capsys.readouterr().err.strip() == "s3blobfs: interrupted"


def test_debug_shows_where() -> None:
    arguments = [sys.executable, "-m", "s3blobfs", "--debug", "status", "/"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "s3blobfs: / is not on a mounted s3blobfs volume"


def test_reader_that_has_seen_enough() -> None:
    command = f"{sys.executable} -m s3blobfs mount --help | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("U", "")


def test_line_of_a_group_with_several_errors() -> None:
    assert line_of(ExceptionGroup("", [UsageError("a"), UsageError("b")])).startswith("internal error")


def test_module_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("raise SystemExit('taken from the current directory')")
    command = [sys.executable, "-P", "-m", "s3blobfs", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("s3blobfs ")
