"""Read answers, and bound what a server can do with them: their bytes, their seconds, their numbers and their order."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import httpx
import numpy as np
import orjson
from qdrant_client import models
from qdrant_client.http.exceptions import ResponseHandlingException

from xqg_qdrant.errors import StoreError
from xqg_qdrant.records import FloatArray
from xqg_qdrant.streams import begin_body
from xqg_qdrant.text import agree, count_of

# The largest honest answer is a page of passages with their vectors, some tens of megabytes.
MAX_ANSWER_BYTES = 256 * 2**20
# Of an answer, from its first byte; an honest server that takes its time does so before it answers.
ANSWER_SECONDS = 300.0
# How many times as long as the wait for its first byte an answer may take: long enough for a slow network.
PATIENCES = 5
PIECE_BYTES = 2**20
LARGEST_COUNT = 2**53
OTHER_SERVER = "check that this is the URL of a Qdrant server, and check the proxies in front of it"


class BoundlessAnswerError(httpx.TransportError):
    """An answer without end, or one that comes too slowly; asking again would not help."""


class LargeAnswerError(BoundlessAnswerError):
    """An answer above `MAX_ANSWER_BYTES`; one about fewer points may be smaller."""


class BoundedStream(httpx.SyncByteStream):
    """The body of an answer, unpacked, up to `MAX_ANSWER_BYTES`."""

    def __init__(self, stream: httpx.SyncByteStream, zipped: bool) -> None:
        self._stream = stream
        self._unzip = zlib.decompressobj(zlib.MAX_WBITS | 32) if zipped else None

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for received in self._stream:
            for piece in self._unpack(received):
                size += len(piece)
                if size > MAX_ANSWER_BYTES:
                    raise LargeAnswerError(f"the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB")
                yield piece

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        if self._unzip is None:
            yield data
            return
        try:
            while data:
                yield self._unzip.decompress(data, PIECE_BYTES)
                data = self._unzip.unconsumed_tail
        except zlib.error as error:
            raise httpx.DecodingError(f"the answer is damaged ({error})") from error


def ask_for_gzip(request: httpx.Request) -> None:
    """Ask for the only compression that `bound_answer` unpacks, unless the request asks for none."""
    if request.headers.get("Accept-Encoding") != "identity":
        request.headers["Accept-Encoding"] = "gzip"


def bound_answer(patience: float, response: httpx.Response) -> None:
    """Bound the body of an answer whose first byte is waited for up to `patience` seconds, before it is read."""
    begin_body(response, min(ANSWER_SECONDS, PATIENCES * patience))
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", ""):
        raise httpx.DecodingError(f"the answer is compressed by {encoding[:40]!r}, which was not asked for")
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.headers.pop("Content-Encoding", None)
    response.stream = BoundedStream(response.stream, encoding == "gzip")


class Record(NamedTuple):
    """A stored point; dense vectors are float32 arrays of shape `(dim,)`, or lists in the client's local mode."""

    id: int | str
    payload: dict[str, Any] | None
    vector: object


def read_json(content: bytes) -> Any:  # noqa: ANN401
    """Return the JSON value of an answer.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deep.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:  # stricter than Python's: it reads no NaN and no lone surrogate
        return json.loads(content)


def read_page(result: Any) -> tuple[list[Record], int | str | None]:  # noqa: ANN401
    """Return the points of a page and the offset of the next one.

    Raises:
        ResponseHandlingException: it is no page.
    """
    following = result.get("next_page_offset") if isinstance(result, dict) else False
    if isinstance(following, bool) or not isinstance(following, int | str | None):
        raise ResponseHandlingException(TypeError("no page"))
    return read_records(result.get("points")), following


def read_records(points: Any) -> list[Record]:  # noqa: ANN401
    """Return points of an answer.

    Raises:
        ResponseHandlingException: they are none.
    """
    try:
        return [*map(_read_record, points)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResponseHandlingException(TypeError("no points")) from error


def read_results(results: Any) -> list[models.UpdateResult]:  # noqa: ANN401
    """Return how far a server is with the changes of a batch: each answer once.

    Raises:
        ResponseHandlingException: it does not say.
    """
    try:
        return [models.UpdateResult(status=status) for status in {result["status"] for result in results}]
    except (KeyError, TypeError, ValueError) as error:
        raise ResponseHandlingException(TypeError("no results")) from error


def _read_record(fields: Mapping[str, Any]) -> Record:
    vector: Any = fields.get("vector")
    if isinstance(vector, dict):
        vector = {name: _read_vector(values) for name, values in vector.items()}
    elif vector is not None:
        vector = _read_vector(vector)
    record = Record(fields["id"], fields.get("payload"), vector)
    if not isinstance(record.id, int | str) or not isinstance(record.payload, dict | None):
        raise TypeError("an id or a payload of another type")
    return record


def _read_vector(values: Any) -> FloatArray | models.SparseVector:  # noqa: ANN401
    if isinstance(values, list):
        return np.fromiter(values, np.float32, len(values))
    return models.SparseVector(**values)


def check_count(count: object, where: str) -> int:
    """Return a number of points.

    Raises:
        StoreError: it is none.
    """
    if not isinstance(count, int) or not 0 <= count <= LARGEST_COUNT:
        raise StoreError(f"{where} counts {str(count)[:40]} points.", OTHER_SERVER)
    return count


class Scored(Protocol):
    """A hit of a search."""

    @property
    def id(self) -> object:
        """Return the point's id."""

    @property
    def score(self) -> float:
        """Return the score."""


def check_answers(answers: Sequence[Sequence[Scored]], asked: int, limit: int, where: str) -> None:
    """Check the answers to a number of searches of up to `limit` hits.

    Raises:
        StoreError: says what the server did.
    """
    if len(answers) != asked:
        raise StoreError(
            f"{where} gave {count_of(len(answers), 'answer')} to {count_of(asked, 'search', 'searches')}.", OTHER_SERVER
        )
    for hits in answers:
        if len(hits) > limit:
            raise StoreError(
                f"{where} found {len(hits)} points where at most {limit} {agree(limit, 'was', 'were')} wanted.",
                OTHER_SERVER,
            )
        if len({str(hit.id) for hit in hits}) < len(hits):
            raise StoreError(f"{where} found the same point twice in one search.", OTHER_SERVER)
        if not all(math.isfinite(hit.score) for hit in hits):
            raise StoreError(f"{where} gave a score that is no number.", "check the stored vectors; some are damaged")


def check_page(found: int, offset: object, before: set[object], where: str) -> None:
    """Check that the next page of a list is another one than those before, and remember its offset.

    Raises:
        StoreError: the list has no end.
    """
    if not found or offset in before:
        raise StoreError(f"{where} returns pages of points without end.", OTHER_SERVER)
    before.add(offset)


def check_asked(found: Iterable[object], asked: Iterable[object], where: str) -> None:
    """Check that a server returned only points that were asked for.

    Raises:
        StoreError: it returned others.
    """
    unasked = {str(point_id) for point_id in found} - {str(point_id) for point_id in asked}
    if unasked:
        raise StoreError(f"{where} returned points that were not asked for, such as {min(unasked)}.", OTHER_SERVER)
