"""Points by gRPC, where the server can be reached by it: a quarter of the bytes that REST sends.

Knows qdrant-client's stubs. Raises nothing: what fails here is for REST to do, and to explain.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.connection import get_channel
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc

# The pair that Qdrant comes with. Beside any other port of REST there could be another server.
REST_PORT = 6333
GRPC_PORT = 6334
PROBE_SECONDS = 1.0


def read_authorities() -> dict[str, bytes] | None:
    """Return the options that make gRPC trust the same certificates as REST does."""
    path = os.environ.get("SSL_CERT_FILE")
    return {"root_certificates": Path(path).read_bytes()} if path else None


class GrpcUpserts:
    """The way by gRPC: found out once for each collection, and given up with the first failure."""

    def __init__(self, client: QdrantClient, location: str, seconds: int) -> None:
        self._client = client
        self._url = urlsplit(location)
        self._seconds = seconds
        self._usable: dict[str, bool] = {}

    def try_upsert(self, collection: str, points: Sequence[models.PointStruct]) -> models.UpdateResult | None:
        """Store the points and return what the server says, None where they are to be sent by REST."""
        if collection not in self._usable:
            self._usable[collection] = self._leads_to(collection)
        if not self._usable[collection]:
            return None
        try:
            converted = [RestToGrpc.convert_point_struct(point) for point in points]
            request = messages.UpsertPoints(collection_name=collection, wait=True, points=converted)
            answer = self._client.grpc_points.Upsert(request, timeout=self._seconds)
            return GrpcToRest.convert_update_result(answer.result)
        except Exception:
            # Refused, lost on the way, or none that messages can hold: a number of 64 bits, metadata nested too deep.
            # It may have been done nevertheless; what is sent twice is stored once.
            self._usable[collection] = False
            return None

    def _leads_to(self, collection: str) -> bool:
        if (self._url.port or REST_PORT) != REST_PORT or self._url.path.strip("/"):
            return False
        try:
            self._probe()
            request = messages.GetCollectionInfoRequest(collection_name=collection)
            answer = self._client.grpc_collections.Get(request, timeout=PROBE_SECONDS)
            found = GrpcToRest.convert_collection_info(answer.result)
            expected = self._client.get_collection(collection)
        except Exception:
            return False
        return (found.config.metadata, found.created_at) == (expected.config.metadata, expected.created_at)

    def _probe(self) -> None:
        """Ask without the key, which whatever else listens at the port must not get, whether this is a Qdrant."""
        secure = self._url.scheme == "https"
        with get_channel(self._url.hostname or "", GRPC_PORT, secure, options=read_authorities()) as channel:
            reply = messages.QdrantStub(channel).HealthCheck(messages.HealthCheckRequest(), timeout=PROBE_SECONDS)
        if "qdrant" not in reply.title:
            raise ValueError(reply.title)
