"""The object clients of a volume: one for each bucket that one of its stores lies in."""

from __future__ import annotations

from s3blobfs.s3.protocol import ObjectClient, ObjectClientFactory


class BucketClients:
    """Makes each bucket's client when it is first asked for."""

    def __init__(self, factory: ObjectClientFactory) -> None:
        self._factory = factory
        self._clients: dict[str, ObjectClient] = {}

    def of(self, bucket: str) -> ObjectClient:
        client = self._clients.get(bucket)
        if client is None:
            client = self._clients[bucket] = self._factory(bucket)
        return client

    async def aclose(self) -> None:
        """No request may be in flight."""
        while self._clients:
            _, client = self._clients.popitem()
            await client.aclose()
