"""Access control lists for tests: in the short text form of acl(5) with numeric ids, and generated."""

from __future__ import annotations

from hypothesis import strategies as st

from s3blobfs.fs.acl import Acl, Entry, Tag

_TAGS = {
    ("u", False): Tag.USER_OBJ,
    ("u", True): Tag.USER,
    ("g", False): Tag.GROUP_OBJ,
    ("g", True): Tag.GROUP,
    ("m", False): Tag.MASK,
    ("o", False): Tag.OTHER,
}


def acl(text: str) -> Acl:
    """Of ``u::rwx,u:2000:r--,g::r-x,m::rwx,o::---``."""
    entries = []
    for part in text.split(","):
        kind, who, permissions = part.split(":")
        bits = sum(bit for bit, letter in zip((4, 2, 1), permissions, strict=True) if letter != "-")
        tag = _TAGS[kind, bool(who)]
        entries.append(Entry(tag, bits, int(who)) if who else Entry(tag, bits))
    return Acl(tuple(entries))


_permissions = st.integers(0, 7)
_ids = st.lists(st.sampled_from([0, 1000, 2000, 65534]), max_size=3, unique=True).map(sorted)


@st.composite
def _valid_acls(draw: st.DrawFn) -> Acl:
    users = [Entry(Tag.USER, draw(_permissions), id_) for id_ in draw(_ids)]
    groups = [Entry(Tag.GROUP, draw(_permissions), id_) for id_ in draw(_ids)]
    masked = bool(users or groups) or draw(st.booleans())
    mask = [Entry(Tag.MASK, draw(_permissions))] if masked else []
    return Acl(
        (
            Entry(Tag.USER_OBJ, draw(_permissions)),
            *users,
            Entry(Tag.GROUP_OBJ, draw(_permissions)),
            *groups,
            *mask,
            Entry(Tag.OTHER, draw(_permissions)),
        )
    )


valid_acls: st.SearchStrategy[Acl] = _valid_acls()
