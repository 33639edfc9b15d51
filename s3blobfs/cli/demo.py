"""``s3blobfs demo``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from s3blobfs.cli.params import PATH
from s3blobfs.demo.server import BUCKET, DemoServer
from s3blobfs.demo.session import VERSIONED, Demo


@click.command()
@click.argument("directory", type=PATH, required=False)
@click.option("--stop", is_flag=True, help="Unmount, and end the S3 server.")
def demo(directory: Path | None, stop: bool) -> None:
    """Try everything with an S3 server of its own: start one on this machine, make a bucket and a volume in
    it, and mount that at DIRECTORY/mnt.

    Everything is kept in DIRECTORY, by default in $XDG_DATA_HOME/s3blobfs/demo: the next run finds the files
    again. Nothing leaves this machine.

    \b
    Examples:
        s3blobfs demo
        s3blobfs demo --stop
    """
    directory = (directory or default_directory()).absolute()
    session = Demo(directory, lambda text: click.echo(f"{text} …", err=True))
    if stop:
        session.stop()
        return
    server = session.start()
    click.echo(tour(session, server))


def default_directory() -> Path:
    """XDG Base Directory Specification."""
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "s3blobfs" / "demo"


def tour(session: Demo, server: DemoServer) -> str:
    """What to try next."""
    mount, directory = shlex.quote(str(session.mountpoint)), shlex.quote(str(session.directory))
    diagram = shlex.quote(str(session.directory / "hello.puml"))
    exports = "\n    ".join(
        f"export {name}={shlex.quote(value)}" for name, value in server.aws_environment().items()
    )
    return f"""
A volume is mounted at {session.mountpoint}.
Its files are objects of the bucket {BUCKET} on the S3 server at {server.endpoint_url}.

Use it as any directory:
    cd {mount}
    cp -r /etc/ssl . && ls -l
    echo one > {VERSIONED}/note; echo two > {VERSIONED}/note

Copy without moving bytes, see what the volume does, wait until everything is in S3:
    s3blobfs cp -r ssl ssl-copy
    s3blobfs status .
    s3blobfs sync .

Files at the top are keyed by their content, and equal ones are one object. Those in {VERSIONED}/
keep one key each, with a version for every change:
    s3blobfs store list .

Draw what happens:
    s3blobfs trace . start {diagram}
    echo hello > hello; cat hello
    s3blobfs trace . stop; cat {diagram}

Look into the bucket with any S3 client; these files have the address and the credentials:
    {exports}
    aws s3 ls --recursive s3://{BUCKET}

Stop it; the next start finds the files again:
    cd; s3blobfs demo --stop {directory}"""
