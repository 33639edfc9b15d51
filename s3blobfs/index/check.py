from collections.abc import Collection
from dataclasses import dataclass

from s3blobfs.index.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Problem:
    kind: str
    detail: str


def check(tx: Transaction, staged_names: Collection[str] | None) -> list[Problem]:
    return []
