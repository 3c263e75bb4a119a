"""A server that speaks Qdrant's REST API over a socket, backed by qdrant-client's in-memory emulation.

It answers in the words and shapes of Qdrant 1.19.0, as recorded (`test_recorded_server`). What it cannot be:

- A disk: it keeps points in memory, so a kill loses them; `disk_is_full` only answers as a full one.
- An optimiser: it never indexes. Every search is exact, quantisation changes nothing, and `statuses` are scripted.
- A cluster: `nodes` only spreads shards in descriptions. There is no consensus, no replica that lags or is dead, no
  forwarding between nodes, and no snapshot of a part of the shards.
- Strict mode as a whole: it refuses only filters. It does not count requests a minute, points or bytes.
- Keys with claims: one key, and `global_access` for one that may not change collections. No token expires.
- Fast or slow as a server is, or as tolerant: it refuses no unknown field of a request.
"""

from __future__ import annotations

import copy
import json
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

import numpy as np
import orjson
from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

Json: TypeAlias = Any
Script: TypeAlias = Callable[["RestQdrant"], tuple[int, dict[str, str], bytes]]


PROXY_REFUSAL = b"<html><head><title>413 Request Entity Too Large</title></head></html>"


def answer(status: int, reason: str, **headers: str) -> Script:
    """Answer a request with an error in Qdrant's format, without carrying it out."""
    body = json.dumps({"status": {"error": reason}, "time": 0.0}).encode()
    return lambda _: (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def hang(rest: RestQdrant) -> tuple[int, dict[str, str], bytes]:
    """Answer only when the server closes."""
    rest.closing.wait(30)
    return 503, {}, b""


def dump(value: Json) -> bytes:
    """Return JSON in which the vectors of points are as short as a server writes them: in digits of a float32."""
    result = value.get("result")
    points = result.get("points") if isinstance(result, dict) else result
    for point in points if isinstance(points, list) else ():
        if isinstance(point, dict) and "vector" in point:
            vector = point["vector"]
            named = isinstance(vector, dict)
            point["vector"] = {name: shorten(vector[name]) for name in vector} if named else shorten(vector)
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # half a surrogate pair, which no server stores
        return json.dumps(value, default=np.ndarray.tolist).encode()


def shorten(vector: Json) -> Json:
    return np.asarray(vector, np.float32) if isinstance(vector, list) else vector


def read_aliases(client: QdrantClient) -> dict[str, str]:
    return {description.alias_name: description.collection_name for description in client.get_aliases().aliases}


def list_collections(client: QdrantClient) -> list[str]:
    return [description.name for description in client.get_collections().collections]


class BadInputError(Exception):
    """A request that the server refuses with 400."""


class BadRequestError(Exception):
    """A request that strict mode forbids: a 400 in other words."""


class ServerError(Exception):
    """A failure inside the server: a 500."""


class ForbiddenError(Exception):
    """What the key may not do: a 403."""


@dataclass
class Settings:
    """The settings of a collection that the emulation does not store."""

    strict_mode: models.StrictModeConfigOutput | None
    sharding: dict[str, int] = field(default_factory=dict)
    indexing_threshold: int | None = 10_000
    prevent_unoptimized: bool | None = None
    quantization: Json = None
    indexes: dict[str, models.PayloadIndexInfo] = field(default_factory=dict)
    # The statuses of the next descriptions; green once they are used up.
    statuses: list[str] = field(default_factory=list)


class RestQdrant(ThreadingHTTPServer):
    """The endpoints that we use, answered by the client's in-memory emulation."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), RestHandler)
        if tls is not None:
            # Each connection's thread does its handshake: a client that breaks it off must not block others.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.client = QdrantClient(":memory:")
        # Tests may also create a collection directly through `client`.
        self.settings: defaultdict[str, Settings] = defaultdict(lambda: Settings(self.strict_mode))
        self.strict_mode: models.StrictModeConfigOutput | None = None  # of new collections
        self.version = "1.16.0"
        self.nodes = 1  # of the cluster, of which this is the first
        # Of a request's body: what the server takes, and what a proxy in front of it does.
        self.most_bytes = 32 * 2**20
        self.most_proxied_bytes = 2**40
        self.disk_is_full = False
        self.is_behind = True  # a proxy, which answers for itself where the server is down
        self.api_key: str | None = None
        self.global_access = True  # of the key; without, it is a key to read and write the points of a collection
        self.own_url = ""  # by which the server reaches itself, if not by `url`, as behind a mapped port
        # By location: the body that created the collection, and its points.
        self.snapshots: dict[str, tuple[Json, list[models.Record]]] = {}
        self.script: list[Script] = []
        self.lose_answers = 0
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent when a client hangs up."""

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self.thread.join()
        self.client.close()

    def describe(self, name: str) -> models.CollectionInfo:
        info = self.client.get_collection(name)
        settings = self.settings[name]
        config = info.config
        sharding = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, **settings.sharding}
        for field_name, value in sharding.items():
            setattr(config.params, field_name, value)
        config.params.on_disk_payload, config.hnsw_config.on_disk = True, False
        config.quantization_config = settings.quantization
        config.strict_mode_config = settings.strict_mode
        config.optimizer_config.indexing_threshold = settings.indexing_threshold
        config.optimizer_config.prevent_unoptimized = settings.prevent_unoptimized
        info.payload_schema = settings.indexes
        info.update_queue = models.UpdateQueueInfo(length=0)
        info.created_at = info.warnings = None
        info.status = models.CollectionStatus(settings.statuses.pop(0) if settings.statuses else "green")
        return info

    def show(self, name: str) -> Json:
        """Describe a collection as the server does, which leaves most unset fields out and shows some as null."""
        shown = self.describe(name).model_dump(mode="json", exclude_none=True)
        nulls = ("max_segment_size", "memmap_threshold", "indexing_threshold", "prevent_unoptimized")
        shown["config"]["optimizer_config"] |= {
            "max_optimization_threads": None,
            **{field_name: shown["config"]["optimizer_config"].get(field_name) for field_name in nulls},
        }
        shown["config"].setdefault("quantization_config", None)
        return shown

    def create(self, name: str, body: Json) -> bool:
        if name in read_aliases(self.client):
            raise BadInputError(f"Can't create collection with name {name}. Alias with the same name already exists")
        vectors = TypeAdapter(dict[str, models.VectorParams]).validate_python(body["vectors"])
        sparse = TypeAdapter(dict[str, models.SparseVectorParams]).validate_python(body.get("sparse_vectors") or {})
        created = self.client.create_collection(name, vectors, sparse or None, metadata=body.get("metadata"))
        self.settings.pop(name, None)
        self.settings[name].sharding = {
            "shard_number": body.get("shard_number") or self.nodes,
            "replication_factor": body.get("replication_factor") or 1,
            "write_consistency_factor": body.get("write_consistency_factor") or 1,
        }
        return created

    def change_aliases(self, actions: list[Json]) -> bool:
        """Apply one action after another, as the server does: those before a failing one stay applied."""
        for action in TypeAdapter(list[models.AliasOperations]).validate_python(actions):
            created = action.create_alias if isinstance(action, models.CreateAliasOperation) else None
            if created and created.collection_name not in list_collections(self.client):
                raise LookupError(created.collection_name)
            self.client.update_collection_aliases([action])
        return True

    def keep_unit_vectors(self, name: str, points: list[models.PointVectors]) -> None:
        """Store vectors of length 1 as they are, as a server does; the emulation scales them again.

        See `is_length_zero_or_normalized` in lib/segment/src/spaces/simple.rs of Qdrant.
        """
        collection = self.client._client.collections[name]  # type: ignore[attr-defined]
        for point in points:
            for vector_name, vector in point.vector.items():  # type: ignore[union-attr]
                values = np.asarray(vector, dtype=np.float32)
                if abs(float((values * values).sum()) - 1) <= 1e-6:
                    collection.vectors[vector_name][collection.ids[point.id]] = values

    def describe_cluster(self) -> Json:
        if self.nodes == 1:
            return {"status": "disabled"}
        return {
            "status": "enabled",
            "peer_id": 0,
            "peers": {str(node): {"uri": f"http://node-{node}:6335/"} for node in range(self.nodes)},
            "raft_info": {"term": 1, "commit": 9, "pending_operations": 0, "is_voter": True},
            "consensus_thread_status": {"consensus_thread_status": "working", "last_update": "2026-11-21T12:00:00Z"},
            "message_send_failures": {},
        }

    def describe_shards(self, name: str) -> Json:
        """Describe shards whose replicas are spread over the nodes in turn."""
        sharding = self.settings[name].sharding
        shards = range(sharding.get("shard_number", self.nodes))
        replicas = min(self.nodes, sharding.get("replication_factor", 1))
        placed = [(shard, (shard + number) % self.nodes) for shard in shards for number in range(replicas)]
        return {
            "peer_id": 0,
            "shard_count": len(shards),
            "local_shards": [
                {"shard_id": shard, "points_count": 1, "state": "Active"} for shard, node in placed if node == 0
            ],
            "remote_shards": [
                {"shard_id": shard, "peer_id": node, "state": "Active"} for shard, node in placed if node
            ],
            "shard_transfers": [],
        }

    def keep_snapshot(self, name: str) -> Json:
        info = self.describe(name)
        body = {
            "vectors": info.config.params.vectors,
            "sparse_vectors": info.config.params.sparse_vectors,
            "metadata": copy.deepcopy(info.config.metadata),
            **self.settings[name].sharding,
        }
        snapshot = f"{name}-0-2026-11-21-12-00-{len(self.snapshots):02}.snapshot"
        records, _ = self.client.scroll(name, limit=100_000, with_payload=True, with_vectors=True)
        folder = f"{self.own_url or self.url}/collections/{quote(name, safe='')}/snapshots"
        self.snapshots[f"{folder}/{quote(snapshot)}"] = body, records
        return {"name": snapshot, "creation_time": "2026-11-21T12:00:00", "size": 1, "checksum": "0" * 64}

    def recover(self, name: str, location: str, api_key: str | None) -> bool:
        """Restore the points; restore the metadata only if the collection does not exist.

        Snapshots are in a folder whose path only the server knows.
        """
        if location.startswith("file:"):
            raise BadRequestError("Invalid snapshot URI, file path must be absolute or on localhost")
        if location not in self.snapshots or self.refuse_key(api_key):
            raise BadInputError(f"Failed to download snapshot from {location}")
        body, records = self.snapshots[location]
        if self.client.collection_exists(name):
            stored, _ = self.client.scroll(name, limit=100_000)
            self.client.delete(name, models.PointIdsList(points=[record.id for record in stored]))
        else:
            self.create(name, body)
        kept = [record.model_dump(include={"id", "vector", "payload"}) for record in records]
        points = TypeAdapter(list[models.PointStruct]).validate_python(kept)
        self.client.upsert(name, points)
        return True

    def refuse_key(self, key: str | None) -> str:
        """Return why a key is refused; empty if it is not."""
        if self.api_key in (None, key):
            return ""
        return "Invalid API key or JWT" if key else "Must provide an API key or an Authorization bearer token"

    def check_filter(self, name: str, wanted: Json) -> None:
        """Refuse what strict mode forbids: too many conditions, or one with too many values."""
        strict = self.settings[name].strict_mode or models.StrictModeConfigOutput()
        sizes = [len(condition.get("has_id", [1])) for condition in wanted["must"]]
        for what, found, most in (
            ("Filter condition limit", len(sizes), strict.filter_max_conditions),
            ("Condition size limit", max(sizes), strict.condition_max_size),
        ):
            if most is not None and found > most:
                raise BadRequestError(f"{what} reached ({found} > {most}). Help: Reduce the filter.")

    def check_most(self, name: str, what: str, found: int, limit: str) -> None:
        """Refuse what strict mode forbids by its size."""
        most = getattr(self.settings[name].strict_mode or models.StrictModeConfigOutput(), limit)
        if most is not None and found > most:
            raise BadRequestError(f"{what} exceeded ({found} > {most}). Help: Reduce it.")

    def respond(self, method: str, path: str, body: Json) -> Json:
        client = self.client
        if path == "/":
            return {"title": "qdrant", "version": self.version}
        if path == "/cluster":
            return self.describe_cluster()
        if path == "/aliases":
            return client.get_aliases()
        if path == "/collections":
            return client.get_collections()
        if path == "/collections/aliases":
            return self.change_aliases(body["actions"])
        name, _, rest = path.removeprefix("/collections/").partition("/")
        if rest == "" and method != "GET" and not self.global_access:
            raise ForbiddenError("Global access is required")
        if (method, rest) == ("PUT", ""):
            return self.create(name, body)
        if (method, rest) == ("PUT", "snapshots/recover"):
            return self.recover(name, body["location"], body.get("api_key"))
        if (method, rest) == ("DELETE", "") and name in read_aliases(client):
            return False
        name = read_aliases(client).get(name, name)
        if rest == "exists":
            return {"exists": client.collection_exists(name)}
        if not client.collection_exists(name):
            raise LookupError(name)
        if (method, rest) == ("PATCH", ""):
            changed = body.pop("optimizers_config", None) or {}
            self.settings[name].indexing_threshold = changed.get(
                "indexing_threshold", self.settings[name].indexing_threshold
            )
            if quantization := body.pop("quantization_config", None):
                self.settings[name].quantization = models.ScalarQuantization.model_validate(quantization)
            return client.update_collection(name, **body)
        if (method, rest) == ("DELETE", ""):
            return client.delete_collection(name)
        if rest == "points/delete":
            return client.delete(name, models.PointIdsList(points=body["points"]))
        if rest == "":
            return self.show(name)
        if rest == "cluster":
            return self.describe_shards(name)
        if (method, rest) == ("POST", "snapshots"):
            return self.keep_snapshot(name)
        if rest == "snapshots":
            folder = f"/collections/{quote(name, safe='')}/snapshots/"
            return [{"name": unquote(kept.rpartition("/")[2]), "size": 1} for kept in self.snapshots if folder in kept]
        if rest == "index":
            schema = models.PayloadIndexInfo(data_type=body["field_schema"], points=0)
            self.settings[name].indexes[body["field_name"]] = schema
            return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)
        if (method, rest) == ("PUT", "points/vectors"):
            points = TypeAdapter(list[models.PointVectors]).validate_python(body["points"])
            done = client.update_vectors(name, points)
            self.keep_unit_vectors(name, points)
            return done
        if (method, rest.partition("/")[0]) == ("PUT", "vectors"):
            config = models.DenseVectorNameConfig.model_validate(body)
            return client.create_vector_name(name, rest.partition("/")[2], config)
        if (method, rest.partition("/")[0]) == ("DELETE", "vectors"):
            return client.delete_vector_name(name, rest.partition("/")[2])
        if rest == "points/payload/delete":
            return client.delete_payload(name, body["keys"], body["points"])
        if rest == "points/batch":
            operations = TypeAdapter(list[models.UpdateOperation]).validate_python(body["operations"])
            for operation in operations:
                if isinstance(operation, models.UpdateVectorsOperation):
                    changed = len(operation.update_vectors.points)
                    self.check_most(name, "Update limit", changed, "upsert_max_batchsize")
            results = client.batch_update_points(name, operations)
            for operation in operations:
                if isinstance(operation, models.UpdateVectorsOperation):
                    self.keep_unit_vectors(name, operation.update_vectors.points)
            return results
        if method == "PUT" and rest.startswith("points") and self.disk_is_full:
            reason = "No space left on device: WAL buffer size exceeds available disk space"
            raise ServerError(f"Service internal error: {reason}")
        if (method, rest) == ("PUT", "points"):
            return client.upsert(name, TypeAdapter(list[models.PointStruct]).validate_python(body["points"]))
        if rest == "points":
            payload = TypeAdapter(models.WithPayloadInterface).validate_python(body["with_payload"])
            return client.retrieve(name, body["ids"], payload, body["with_vector"])
        if rest == "points/count":
            return client.count(name, exact=body["exact"])
        if rest == "points/scroll":
            self.check_most(name, "Limit", body["limit"], "max_query_limit")
            payload = TypeAdapter(models.WithPayloadInterface).validate_python(body["with_payload"])
            options = {"with_payload": payload, "with_vectors": body["with_vector"]}
            if "filter" in body:
                self.check_filter(name, body["filter"])
                options["scroll_filter"] = models.Filter.model_validate(body["filter"])
            records, offset = client.scroll(name, limit=body["limit"], offset=body.get("offset"), **options)
            return {"points": records, "next_page_offset": offset}
        # The emulation warns about parameters it does not need; in a test the warning would break the connection.
        if rest == "points/query":
            return client.query_batch_points(name, [models.QueryRequest.model_validate({**body, "params": None})])[0]
        assert rest == "points/query/batch", path
        searches = [{**search, "params": None} for search in body["searches"]]
        return client.query_batch_points(name, TypeAdapter(list[models.QueryRequest]).validate_python(searches))


class RestHandler(BaseHTTPRequestHandler):
    server: RestQdrant
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Write nothing."""

    def do_GET(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        rest = self.server
        with rest.lock:
            rest.requests.append((self.command, self.path, len(raw)))
            script = rest.script.pop(0) if rest.script else None
        if len(raw) > rest.most_proxied_bytes:
            status, headers, content = 413, {"Content-Type": "text/html"}, PROXY_REFUSAL
        elif not rest.is_behind:
            status, headers, content = 502, {"Content-Type": "text/html"}, b"<html><h1>502 Bad Gateway</h1></html>"
        elif reason := rest.refuse_key(self.headers.get("api-key")):
            status, headers, content = 401, {"Content-Type": "text/plain"}, reason.encode()
        elif script:
            status, headers, content = script(rest)
            content = content.replace(b"<api-key>", self.headers.get("api-key", "").encode())
        else:
            headers = {}
            with rest.lock:
                if len(raw) > rest.most_bytes:
                    reason = f"JSON payload ({len(raw)} bytes) is larger than allowed (limit: {rest.most_bytes} bytes)."
                    status, value = 400, {"status": {"error": reason}, "time": 0.0}
                else:
                    status, value = self.run(path, json.loads(raw) if raw else {})
                if self.command != "GET" and rest.lose_answers:
                    rest.lose_answers -= 1
                    status, value = 503, {"status": {"error": "lost on the way"}}
            content = dump(value)
        self.send_response(status)
        for name, header in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, header)
        self.end_headers()
        self.wfile.write(content)

    def run(self, path: str, body: Json) -> tuple[int, Json]:
        try:
            result = TypeAdapter(Any).dump_python(
                self.server.respond(self.command, path, body), mode="json", exclude_none=True
            )
        except LookupError as error:
            return 404, {"status": {"error": f"Not found: Collection `{error}` doesn't exist!"}, "time": 0.0}
        except BadInputError as error:
            return 400, {"status": {"error": f"Wrong input: {error}"}, "time": 0.0}
        except BadRequestError as error:
            return 400, {"status": {"error": f"Bad request: {error}"}, "time": 0.0}
        except ForbiddenError as error:
            return 403, {"status": {"error": f"Forbidden: {error}"}, "time": 0.0}
        except ServerError as error:
            return 500, {"status": {"error": str(error)}, "time": 0.0}
        except ValueError as error:
            return 409, {"status": {"error": str(error)}, "time": 0.0}
        return 200, result if path == "/" else {"result": result, "status": "ok", "time": 0.0}

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()
