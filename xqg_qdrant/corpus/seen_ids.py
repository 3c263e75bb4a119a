"""Keep a set of millions of ids in about twenty bytes each.

An id is represented by sixteen bytes of its digest; collisions are too unlikely to matter.
"""

from __future__ import annotations

from hashlib import blake2b

BUCKETS = 1 << 16
TRACE_BYTES = 14


class TextSet:
    """A set of texts that only grows.

    A Python set of 16-byte digests takes about 100 bytes a text. Here two bytes of the digest choose a bucket, which
    holds the other fourteen end to end.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(BUCKETS)]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, text: str) -> bool:
        bucket, trace = self._locate(text)
        return _holds(bucket, trace)

    def add(self, text: str) -> bool:
        """Add a text; return whether it is new."""
        bucket, trace = self._locate(text)
        if _holds(bucket, trace):
            return False
        bucket += trace
        self._length += 1
        return True

    def _locate(self, text: str) -> tuple[bytearray, bytes]:
        """Return the bucket of a text, and its trace of `TRACE_BYTES` bytes."""
        digest = blake2b(text.encode("utf-8"), digest_size=TRACE_BYTES + 2).digest()
        return self._buckets[int.from_bytes(digest[:2], "big")], digest[2:]


def _holds(bucket: bytearray, trace: bytes) -> bool:
    at = bucket.find(trace)
    while at >= 0 and at % TRACE_BYTES:  # a match across the border of two traces
        at = bucket.find(trace, at + 1)
    return at >= 0
