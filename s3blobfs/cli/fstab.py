"""``-o``: options as fstab(5) and mount(8) write them.

``-o cache_size=5G,ro`` is ``--cache-size 5G --read-only``: each option of the command can be written so,
with ``_`` for ``-``. What is given on the command line itself counts more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import click

KERNEL_OPTIONS = frozenset({"noexec", "nosuid", "nodev", "sync", "dirsync"})
"""Handed to the kernel."""

IGNORED_OPTIONS = frozenset(
    {
        *("defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group"),
        *("rw", "exec", "suid", "dev", "async", "atime", "diratime", "relatime", "norelatime"),
    }
)
"""For mount(8), systemd or the boot scripts, or what is the case anyway."""

IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=")

ALIASES = {"ro": "read_only", "url": "endpoint_url"}


def parse_options(
    text: str, parameters: Mapping[str, click.Parameter]
) -> tuple[dict[str, str | bool], tuple[str, ...]]:
    """``(values of parameters, options for the kernel)``; raises :class:`click.BadParameter`."""
    values: dict[str, str | bool] = {}
    for_kernel = []
    for entry in filter(None, text.split(",")):
        name, equals, value = entry.partition("=")
        if entry in KERNEL_OPTIONS:
            for_kernel.append(entry)
            continue
        if entry in IGNORED_OPTIONS or entry.startswith(IGNORED_PREFIXES):
            continue
        parameter = parameters.get(ALIASES.get(name, name))
        if not isinstance(parameter, click.Option) or parameter.name is None:
            raise click.BadParameter(f"unknown option {name!r}; known are {', '.join(known(parameters))}")
        if parameter.is_flag and equals:
            raise click.BadParameter(f"{name!r} takes no value")
        if not parameter.is_flag and not value:
            raise click.BadParameter(f"{name!r} needs a value: {name}=VALUE")
        values[parameter.name] = True if parameter.is_flag else value
    return values, tuple(for_kernel)


def known(parameters: Mapping[str, click.Parameter]) -> Iterable[str]:
    """Names that ``-o`` takes, for a message."""
    return sorted([*parameters, *ALIASES, *KERNEL_OPTIONS])
