"""The limit on the other side: S3 itself, by the library that s3blobfs uses, without digests, retries, index
and kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import obstore

from benchlib.content import SMALL_BYTES, compare, large_content, middle, small_contents
from benchlib.measure import Watch
from benchlib.place import Scale, in_threads, one_by_one
from benchlib.row import ForEach
from benchlib.targets import InThisProcess
from s3blobfs.config import ReadOptions, S3Options
from s3blobfs.s3.connection import S3Connection

BUCKET = "bench-bare"

Work = Callable[[str, Watch], int]


class BareS3(InThisProcess):
    """One bucket; the work is done in this process."""

    name = "S3"

    def __init__(self, endpoint_url: str, scale: Scale, bucket: str = BUCKET) -> None:
        self._options = S3Options(endpoint_url=endpoint_url)
        connection = S3Connection(self._options)
        connection.boto.create_bucket(Bucket=bucket)
        self._store = connection.obstore(bucket)
        connection.close()
        self._scale = scale

    @property
    def rows(self) -> dict[str, Work]:
        """By the names of the rows that they are the limit of; each is handed the name of its objects."""
        return {
            "large-write": self._put_large,
            "large-read-cold": self._get_large,
            "middle-read-cold": self._get_middle,
            "small-write": partial(self._put_small, one_by_one),
            "small-write-threads": partial(self._put_small, in_threads),
            "small-read-cold": partial(self._get_small, one_by_one),
            "small-read-cold-threads": partial(self._get_small, in_threads),
        }

    # -- one large object ------------------------------------------------------------------------------

    def _put_large(self, name: str, watch: Watch) -> int:
        content = self._large_content(name)
        with watch():
            obstore.put(
                self._store,
                name,
                content,
                chunk_size=self._options.part_size_bytes,
                max_concurrency=self._options.part_concurrency,
            )
        return len(content)

    def _get_large(self, name: str, watch: Watch) -> int:
        """In ranges, as many at a time as s3blobfs reads ahead."""
        content = self._large_content(name)
        obstore.put(self._store, name, content)
        window = ReadOptions().window_bytes
        found = [b""] * -(-len(content) // window)

        def get(number: int) -> None:
            start = number * window
            found[number] = bytes(
                obstore.get_range(self._store, name, start=start, end=min(start + window, len(content)))
            )

        with watch():
            in_threads(get, range(len(found)), threads=ReadOptions().parallel_windows)
        compare([b"".join(found)], [content], name)
        return len(content)

    def _get_middle(self, name: str, watch: Watch) -> int:
        content = self._large_content(name)
        obstore.put(self._store, name, content)
        start = middle(len(content))
        with watch():
            found = bytes(obstore.get_range(self._store, name, start=start, length=SMALL_BYTES))
        compare([found], [content[start : start + SMALL_BYTES]], name)
        return 1

    def _large_content(self, name: str) -> bytes:
        return large_content(name, self._scale.large_bytes)

    # -- many small objects ----------------------------------------------------------------------------

    def _put_small(self, for_each: ForEach, name: str, watch: Watch) -> int:
        contents = small_contents(name, self._scale.small_files)
        with watch():
            for_each(partial(self._put, name, contents), range(len(contents)))
        return len(contents)

    def _get_small(self, for_each: ForEach, name: str, watch: Watch) -> int:
        contents = small_contents(name, self._scale.small_files)
        in_threads(partial(self._put, name, contents), range(len(contents)))
        found = [b""] * len(contents)

        def get(number: int) -> None:
            found[number] = bytes(obstore.get(self._store, f"{name}/{number}").bytes())

        with watch():
            for_each(get, range(len(contents)))
        compare(found, contents, name)
        return len(contents)

    def _put(self, name: str, contents: list[bytes], number: int) -> None:
        obstore.put(self._store, f"{name}/{number}", contents[number], use_multipart=False)
