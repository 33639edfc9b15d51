"""Random faults on the wire, with how often each was made."""

from __future__ import annotations

import random
import threading
from collections import Counter

from tests.support.proxy import RecordedRequest, WireFault, error_answer

_ANY = (
    ("500", 4, WireFault(answer=error_answer(500, "InternalError"))),
    ("503 SlowDown", 4, WireFault(answer=error_answer(503, "SlowDown"))),
    ("403", 1, WireFault(answer=error_answer(403, "ExpiredToken"))),
    ("reset before the server heard of it", 4, WireFault(reset_before=True)),
    ("reset after the server did it", 4, WireFault(reset_after=True)),
    ("latency of 200 ms", 8, WireFault(delay_s=0.2)),
    ("stalled for 3 s", 1, WireFault(delay_s=3.0)),
)
_OF_GET = (
    ("half a body", 4, WireFault(answer_bytes=400)),
    ("a flipped byte in an answer", 4, WireFault(flip_answer_byte=500)),
)
_OF_COPY = (("200 with an error in it", 8, WireFault(answer=error_answer(200, "InternalError"))),)
_OF_PUT = (("a flipped byte in a request", 4, WireFault(flip_request_byte=500)),)


ONE_IN = 25


class Storm:
    """A rule of the proxy: one request in ``ONE_IN`` meets a fault."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.away = threading.Event()
        """While it is set, the server cannot be reached at all."""
        self.calm = threading.Event()
        """While it is set, nothing goes wrong."""
        self.counts: Counter[str] = Counter()

    def __call__(self, request: RecordedRequest) -> WireFault | None:
        if self.calm.is_set():
            return None
        if self.away.is_set():
            self.counts["server away"] += 1
            return WireFault(reset_before=True)
        if self._random.randrange(ONE_IN):
            return None
        faults = _ANY + _of(request)
        name, _, fault = self._random.choices(faults, [weight for _, weight, _ in faults])[0]
        self.counts[name] += 1
        return fault


def _of(request: RecordedRequest) -> tuple[tuple[str, int, WireFault], ...]:
    if request.method == "GET":
        return _OF_GET
    if request.method != "PUT":
        return ()
    return _OF_COPY if "x-amz-copy-source" in request.headers else _OF_PUT
