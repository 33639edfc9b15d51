"""Options that commands of the bench share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import click

from s3blobfs.config import parse_size
from s3blobfs.errors import UsageError

FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
NEW_DIRECTORY = click.Path(file_okay=False, path_type=Path)


def names(known: Collection[str], text: str) -> list[str]:
    """Of a list with commas. Raises :class:`click.BadParameter` for one that is not known."""
    found = [name for name in text.split(",") if name]
    for name in found:
        if name not in known:
            raise click.BadParameter(f"unknown: {name!r}; known are {', '.join(known)}")
    return found


def size(text: str) -> int:
    """In bytes. Raises :class:`click.BadParameter`."""
    try:
        return parse_size(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error
