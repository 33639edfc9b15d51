"""The command ``s3blobfs``: the table of its commands, and the one place where errors become lines."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from s3blobfs import __version__
from s3blobfs.cli.failure import line_of

COMMANDS = {
    "mkfs": "make a volume in a bucket",
    "mount": "mount a volume",
    "umount": "unmount, and wait until everything is in S3",
    "sync": "wait until everything is in S3",
    "status": "show what a mounted volume is doing",
    "store": "list, add and bind the stores of a mounted volume",
    "cp": "copy files inside a volume without moving their bytes",
    "fsck": "check the index of a volume, and mend it",
    "scrub": "compare every content with its object in S3, and heal it",
    "gc": "find and delete what nobody needs in the bucket",
    "trace": "draw what a mounted volume does as sequence diagrams",
    "recover": "bring a lost index back from the bucket",
    "demo": "try everything with an S3 server of its own",
}
"""Command to the line that the list of commands shows. A command's module has its name, and is imported when
it is used: the S3 libraries take a second."""

URI_SCHEME = "s3://"

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

logger = logging.getLogger(__name__)


class LazyGroup(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"s3blobfs.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # As mount(8) calls the helper of a filesystem: SOURCE MOUNTPOINT -o OPTIONS.
        if args and args[0].startswith(URI_SCHEME):
            args = ["mount", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with 's3blobfs demo', or see 's3blobfs COMMAND --help'.",
)
@click.version_option(__version__, message="s3blobfs %(version)s")
@click.option("--debug", is_flag=True, help="Log everything, and show where an error comes from.")
def cli(debug: bool) -> None:
    """A filesystem over S3 in which every file is one whole object.

    Credentials come from where the AWS tools look for them: the environment, ~/.aws, or the role of the
    instance. They are never written to the index, a log or a trace.

    \b
        s3blobfs mkfs s3://my-bucket --create-bucket
        s3blobfs mount s3://my-bucket /mnt/files
        cp -r photos /mnt/files/
        s3blobfs status /mnt/files
        s3blobfs umount /mnt/files
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if debug:
        # Theirs is noise, and botocore's holds signed headers.
        for name in ("botocore", "boto3", "urllib3"):
            logging.getLogger(name).setLevel(logging.INFO)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 1 when it failed, 2 when it was not understood."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command; errors become one line on stderr. Answers the exit code."""
    debug = "--debug" in arguments[:1]
    try:
        result: Any = cli.main(list(arguments), prog_name="s3blobfs", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _refused(error)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (Exception, BaseExceptionGroup) as error:
        # trio wraps the interrupt that reaches it in a task.
        if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
            return _interrupted()
        if not isinstance(error, Exception):
            raise
        if debug:
            logger.debug("the error in full", exc_info=True)
        _say(line_of(error))
        return EXIT_FAILED


def _interrupted() -> int:
    _say("interrupted")
    return EXIT_INTERRUPTED


def _refused(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EXIT_USAGE
    _say(error.format_message())
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"See '{error.ctx.command_path} --help'.", err=True)
    return error.exit_code


def _say(line: str) -> None:
    click.echo(f"s3blobfs: {' '.join(line.split())}", err=True)
