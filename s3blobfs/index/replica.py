"""The table ``replica``: how far the copy of this index in the bucket is."""

from __future__ import annotations

from dataclasses import dataclass

from s3blobfs.index.transaction import Transaction


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """The row; the schema says what each column means."""

    number: int
    digest: str
    previous: str
    sequence: int
    schema_version: int
    claimed: bool


def find(tx: Transaction) -> ReplicaRow | None:
    """``None``: nothing was ever sent from this file."""
    row = tx.execute(
        "SELECT number, digest, previous, sequence, schema_version, claimed FROM replica"
    ).fetchone()
    return None if row is None else _row(*row)


def store(tx: Transaction, row: ReplicaRow) -> None:
    """To be run by :meth:`~s3blobfs.index.database.Database.note`: it is no change of the volume."""
    tx.modify(
        "INSERT OR REPLACE INTO replica VALUES (1, ?, ?, ?, ?, ?, ?)",
        (row.number, row.digest, row.previous, row.sequence, row.schema_version, int(row.claimed)),
    )


def _row(
    number: int, digest: str, previous: str, sequence: int, schema_version: int, claimed: int
) -> ReplicaRow:
    return ReplicaRow(number, digest, previous, sequence, schema_version, bool(claimed))
