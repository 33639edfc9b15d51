"""Random sequences of namespace operations, compared with dictionaries after each step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3blobfs.index import blobs, dentries, inodes, xattrs
from s3blobfs.index.blobs import BlobState
from s3blobfs.index.check import check
from s3blobfs.index.database import Database
from s3blobfs.index.inodes import Usage
from s3blobfs.index.transaction import Transaction
from s3blobfs.trace import Tracer
from tests.index import volume
from tests.index.volume import NOW, ROOT, add_directory, add_file, give_content

NAMES = (b"a", b"b", b"\xff")
CONTENTS = (b"", b"one", b"three")


@dataclass(slots=True)
class Node:
    """An inode of the model."""

    children: dict[bytes, int] | None = None
    """In the order of cookies; ``None`` for a file."""
    content: bytes | None = None
    attributes: dict[bytes, bytes] = field(default_factory=dict)


class Model:
    """What the index should hold."""

    def __init__(self) -> None:
        self.nodes = {ROOT: Node(children={})}

    def directories(self) -> list[int]:
        return [inode_id for inode_id, node in self.nodes.items() if node.children is not None]

    def children(self, directory: int) -> dict[bytes, int]:
        children = self.nodes[directory].children
        assert children is not None
        return children

    def names(self) -> Iterator[tuple[int, bytes, int]]:
        for directory in self.directories():
            for name, inode_id in self.children(directory).items():
                yield directory, name, inode_id

    def links(self, inode_id: int) -> int:
        if self.nodes[inode_id].children is not None:
            return 2 + sum(
                self.nodes[child].children is not None for child in self.children(inode_id).values()
            )
        return sum(child == inode_id for _, _, child in self.names())

    def is_below(self, inode_id: int, ancestor: int) -> bool:
        parents = {child: parent for parent, _, child in self.names()}
        while inode_id != ancestor and inode_id != ROOT:
            inode_id = parents[inode_id]
        return inode_id == ancestor


class Abort(Exception):
    """A transaction that fails after its changes."""


@dataclass(frozen=True, slots=True)
class Step:
    """An operation; the numbers choose among what there is at the time."""

    operation: str
    first: int
    second: int
    name: bytes
    content: bytes
    abort: bool
    durable: bool


STEPS = st.builds(
    Step,
    operation=st.sampled_from(["file", "directory", "link", "remove", "rename", "content", "xattr"]),
    first=st.integers(0, 20),
    second=st.integers(0, 20),
    name=st.sampled_from(NAMES),
    content=st.sampled_from(CONTENTS),
    abort=st.integers(0, 4).map(lambda n: n == 0),
    durable=st.integers(0, 9).map(lambda n: n == 0),
)


def _unlink(tx: Transaction, model: Model, directory: int, name: bytes) -> None:
    """Remove a name, and its inode with its last one."""
    inode_id = model.children(directory)[name]
    dentries.remove(tx, directory, name)
    is_directory = model.nodes[inode_id].children is not None
    if is_directory:
        inodes.add_links(tx, directory, -1, NOW)
    row = inodes.add_links(tx, inode_id, -2 if is_directory else -1, NOW)
    del model.children(directory)[name]
    if row.nlink == 0:
        inodes.remove(tx, inode_id)
        if row.blob_id is not None:
            blobs.drop_ref(tx, row.blob_id, NOW, superseded=False)
        del model.nodes[inode_id]


def apply(tx: Transaction, model: Model, step: Step) -> None:
    """One operation on both; nothing where it makes no sense."""
    directories = model.directories()
    directory = directories[step.first % len(directories)]
    names = list(model.names())
    files = [inode_id for inode_id, node in model.nodes.items() if node.children is None]
    children = model.children(directory)
    if step.operation == "file" and step.name not in children:
        row = add_file(tx, directory, step.name)
        model.nodes[row.id] = Node()
        children[step.name] = row.id
    elif step.operation == "directory" and step.name not in children:
        row = add_directory(tx, directory, step.name)
        model.nodes[row.id] = Node(children={})
        children[step.name] = row.id
    elif step.operation == "link" and step.name not in children and files:
        inode_id = files[step.second % len(files)]
        dentries.insert(tx, directory, step.name, inode_id)
        inodes.add_links(tx, inode_id, 1, NOW)
        children[step.name] = inode_id
    elif step.operation == "remove" and names:
        parent, name, inode_id = names[step.second % len(names)]
        assert dentries.is_empty(tx, inode_id) == (not model.nodes[inode_id].children)
        if not model.nodes[inode_id].children:
            _unlink(tx, model, parent, name)
    elif step.operation == "rename" and names:
        _rename(tx, model, names[step.second % len(names)], directory, step.name)
    elif step.operation == "content" and files:
        inode_id = files[step.second % len(files)]
        give_content(tx, inode_id, step.content)
        model.nodes[inode_id].content = step.content
    elif step.operation == "xattr":
        inode_id = list(model.nodes)[step.second % len(model.nodes)]
        attributes = model.nodes[inode_id].attributes
        assert xattrs.remove(tx, inode_id, step.name) == (step.name in attributes)
        if attributes.pop(step.name, None) is None:
            xattrs.set(tx, inode_id, step.name, step.content)
            attributes[step.name] = step.content


def _rename(
    tx: Transaction, model: Model, source: tuple[int, bytes, int], directory: int, new_name: bytes
) -> None:
    parent, name, inode_id = source
    is_directory = model.nodes[inode_id].children is not None
    below = is_directory and model.is_below(directory, inode_id)
    if is_directory:
        assert dentries.is_ancestor(tx, inode_id, directory) == below
    target = model.children(directory).get(new_name)
    if below or target == inode_id:
        return
    if target is not None:
        if model.nodes[target].children:
            return
        _unlink(tx, model, directory, new_name)
    dentries.move(tx, parent, name, directory, new_name)
    if is_directory and parent != directory:
        inodes.add_links(tx, parent, -1, NOW)
        inodes.add_links(tx, directory, 1, NOW)
    del model.children(parent)[name]
    model.children(directory)[new_name] = inode_id


def _compare(tx: Transaction, model: Model) -> None:
    for inode_id, node in model.nodes.items():
        row = inodes.get(tx, inode_id)
        assert row.nlink == model.links(inode_id)
        assert {name: xattrs.find(tx, inode_id, name) for name in xattrs.names(tx, inode_id)} == (
            node.attributes
        )
        if node.children is not None:
            listed = {entry[1]: entry[2] for entry in dentries.page(tx, inode_id, 0, 100)}
            assert listed == node.children
            for name, child in node.children.items():
                found = dentries.lookup(tx, inode_id, name)
                assert found == inodes.get(tx, child)
                assert (inode_id, name) in dentries.names_of(tx, child)
        else:
            assert row.size_bytes == len(node.content or b"")
            assert (row.blob_id is not None) == (node.content is not None)
            if row.blob_id is not None:
                assert blobs.get(tx, row.blob_id).state is BlobState.LIVE
        if inode_id != ROOT:
            assert _resolved(model, dentries.path_of(tx, inode_id)) == inode_id
    total = sum(len(node.content or b"") for node in model.nodes.values())
    assert inodes.usage(tx) == Usage(len(model.nodes), total)
    assert inodes.orphans(tx) == []
    assert check(tx, set()) == []


def _resolved(model: Model, path: bytes | None) -> int:
    assert path is not None
    inode_id = ROOT
    for name in path.split(b"/"):
        inode_id = model.children(inode_id)[name]
    return inode_id


def _copy(model: Model) -> Model:
    copy = Model()
    copy.nodes = {
        inode_id: Node(
            dict(node.children) if node.children is not None else None, node.content, dict(node.attributes)
        )
        for inode_id, node in model.nodes.items()
    }
    return copy


async def _play(path: Path, steps: list[Step]) -> None:
    database = volume.make(path)
    await database.write(volume.fill)
    model = Model()
    for step in steps:
        changed = _copy(model)

        def transaction(tx: Transaction, changed: Model = changed, step: Step = step) -> None:
            apply(tx, changed, step)
            _compare(tx, changed)
            if step.abort:
                raise Abort

        try:
            await database.write(transaction, durable=step.durable)
        except Abort:
            pass
        else:
            model = changed
        await database.read(lambda tx, model=model: _compare(tx, model))  # type: ignore[misc]
    await database.aclose()
    database = Database.open(path, tracer=Tracer())
    await database.read(lambda tx: _compare(tx, model))
    await database.aclose()


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_the_index_does_what_the_model_does(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(_play, Path(directory) / "index.db", steps)
