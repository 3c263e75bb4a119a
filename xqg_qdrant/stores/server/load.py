"""A server's settings around a load (version, limits, indexes), and its cluster (nodes, aliases, snapshots).

The server indexes nothing while an empty collection is filled, and as before afterwards. The former threshold is
stored with the collection: if a process is killed meanwhile, the next one that writes restores it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.stores.protocol import Indexing, Sharding, Snapshot
from xqg_qdrant.stores.server.limits import check_write
from xqg_qdrant.stores.server.requests import ForbiddenError, NotFoundError, Wire

LOGGER = logging.getLogger(__name__)

BULK_LOAD_KEY = "xqg_bulk_load"
RECORDED_KEY = "xqg_recorded"
THRESHOLD = "indexing_threshold"
INDEXED_FIELDS = {"passage_id": models.PayloadSchemaType.KEYWORD}

POLL_SECONDS = 1.0
# A server reports green until its optimiser has looked at the collection, although there is work.
GREEN_IN_A_ROW = 2
STUCK_SECONDS = 900.0

WITHOUT_SNAPSHOT = "take one by the server's own means, or continue without one (--no-snapshot)"


class ServerLoad:
    """The settings of a server and its collections around a load."""

    def __init__(self, wire: Wire, client: QdrantClient, location: str) -> None:
        self._wire = wire
        self._client = client
        self._location = location
        self._prepared: set[str] = set()
        self._told: set[str] = set()

    def require_version(self, feature: str, first: tuple[int, int]) -> None:
        """Check that a server is new enough for a feature.

        Raises:
            StoreError: the server is older; names both versions.
        """
        answer = self._wire.ask("read the version", self._client.info).version
        version = re.match(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?\b", answer)
        if version is None or (int(version[1]), int(version[2])) < first:
            cure = "upgrade the server, or use the embedded store edge:DIR"
            found, needed = version[0] if version else "of an unknown version", ".".join(map(str, first))
            raise StoreError(f"{self._location} is Qdrant {found}; {feature} need {needed} or later.", cure)

    def prepare(self, collection: str, dim: int) -> None:
        """Prepare a collection for writing, once: check limits, add payload indexes, undo a killed load.

        Raises:
            StoreError: a limit forbids new points.
        """
        if collection in self._prepared:
            return
        info = self._read(f"read {collection!r}", collection)
        check_write(f"collection {collection!r} in {self._location}", info, dim, frozenset(INDEXED_FIELDS))
        for field, schema in INDEXED_FIELDS.items():
            if field not in info.payload_schema:
                self._wire.ask(
                    f"index {field} of {collection!r}",
                    self._client.create_payload_index,
                    collection_name=collection,
                    field_name=field,
                    field_schema=schema,
                    wait=True,
                )
        self._if_allowed(self.resume, collection, "Its indexing stays as it is.")
        self._prepared.add(collection)

    def forget(self, collection: str) -> None:
        """Forget a deleted collection, so that a new one of this name is prepared again."""
        self._prepared.discard(collection)

    @contextmanager
    def paused(self, collection: str) -> Iterator[None]:
        """Pause indexing, if the key may change settings and the server reports a threshold to restore."""
        try:
            self._if_allowed(self._pause, collection, "It is indexed while it is filled, which only takes longer.")
            yield
        finally:
            self._if_allowed(self.resume, collection, "Its indexing stays as it is.")

    def _pause(self, collection: str) -> None:
        action = f"pause the indexing of {collection!r}"
        config = self._read(action, collection).config.optimizer_config
        # With prevent_unoptimized a write would wait forever for the index.
        if config.indexing_threshold and not getattr(config, "prevent_unoptimized", None):
            self._update(action, collection, metadata={BULK_LOAD_KEY: {THRESHOLD: config.indexing_threshold}})
            self._update(action, collection, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))

    def resume(self, collection: str) -> None:
        """Restore what `paused` changed, here or in a process that was killed."""
        action = f"restore the indexing of {collection!r}"
        try:
            info = self._read(action, collection)
        except NotFoundError:  # deleted meanwhile
            return
        kept = (info.config.metadata or {}).get(BULK_LOAD_KEY)
        if isinstance(kept, dict) and isinstance(kept.get(THRESHOLD), int):
            diff = models.OptimizersConfigDiff(indexing_threshold=kept[THRESHOLD])
            self._update(action, collection, optimizers_config=diff)
            self._update(action, collection, metadata={BULK_LOAD_KEY: None})

    def record(self, collection: str, count: Callable[[], int]) -> None:
        """Record the number of points, unless the key may not."""
        try:
            counted = count()
            if counted != read_recorded(self._read(f"count {collection!r}", collection)):
                self._write_recorded(collection, counted)
                # Other processes may have deleted points since they were counted.
                self.correct_recorded(collection, count)
        except (NotFoundError, ForbiddenError):  # deleted meanwhile, or the key may not
            return

    def lower_recorded(self, collection: str, deleted: int) -> bool:
        """Lower the recorded number before points are deleted; return whether there was one, and the key may."""
        recorded = read_recorded(self._read(f"count {collection!r}", collection))
        if recorded is None:
            return False
        try:
            self._write_recorded(collection, max(0, recorded - deleted))
        except ForbiddenError as error:
            LOGGER.warning("%s xqg status will call the deleted points missing.", error.message)
            return False
        return True

    def correct_recorded(self, collection: str, count: Callable[[], int]) -> None:
        """Lower the recorded number to the present one."""
        while (counted := count()) < (read_recorded(self._read(f"count {collection!r}", collection)) or 0):
            self._write_recorded(collection, counted)

    def _write_recorded(self, collection: str, count: int) -> None:
        self._update(f"record the number of points of {collection!r}", collection, metadata={RECORDED_KEY: count})

    def watch(self, collection: str) -> Iterator[Indexing]:
        """Yield progress until the server has finished indexing.

        Raises:
            StoreError: indexing failed, or made no progress for `STUCK_SECONDS`.
        """
        action = f"index collection {collection!r}"
        started = last_progress = time.monotonic()
        indexed, green, changed = -1, 0, False
        while True:
            info = self._read(action, collection)
            now = time.monotonic()
            if info.status == models.CollectionStatus.RED:
                raise StoreError(f"the server cannot {action}.", "look at the server's log")
            if info.status == models.CollectionStatus.GREY:
                # A restarted server waits for a change of settings; this one changes nothing.
                self._update(action, collection, optimizers_config=models.OptimizersConfigDiff())
            green = green + 1 if info.status == models.CollectionStatus.GREEN else 0
            changed = changed or not green
            yield Indexing(now - started, changed)
            if green == GREEN_IN_A_ROW:
                return
            if info.indexed_vectors_count != indexed:
                indexed, last_progress = info.indexed_vectors_count or 0, now
            if now - last_progress > STUCK_SECONDS:
                cure = "look at the server's log, then run xqg optimise; the points are stored"
                raise StoreError(f"the server has indexed nothing of {collection!r} for {STUCK_SECONDS:.0f} s.", cure)
            time.sleep(POLL_SECONDS)

    def _if_allowed(self, change: Callable[[str], None], collection: str, otherwise: str) -> None:
        """Change a collection's settings; warn, once, if the key may not, as a key for one collection."""
        try:
            change(collection)
        except ForbiddenError as error:
            if error.message not in self._told:
                self._told.add(error.message)
                LOGGER.warning("%s %s", error.message, otherwise)

    def _read(self, action: str, collection: str) -> models.CollectionInfo:
        return self._wire.ask(action, self._client.get_collection, collection_name=collection)

    def _update(self, action: str, collection: str, **settings: Any) -> None:
        self._wire.ask(action, self._client.update_collection, collection_name=collection, **settings)


class Cluster:
    """A server of one node or several."""

    def __init__(self, wire: Wire, client: QdrantClient, location: str) -> None:
        self._wire = wire
        self._client = client
        self._location = location

    def check_nodes(self, wanted: Sharding) -> None:
        """Check that there is a node for each replica: a server would promise more but keep fewer.

        Raises:
            InputError: names the number of nodes.
        """
        if wanted.replication_factor is None or wanted.replication_factor < 2:
            return
        status = self._wire.ask("count the nodes", self._client.cluster_status)
        nodes = len(status.peers) if isinstance(status, models.ClusterStatusOneOf1) else 1
        if nodes < wanted.replication_factor:
            raise InputError(
                f"{wanted.replication_factor} replicas need as many nodes, and {self._location} has {nodes}.",
                f"set --replication-factor to at most {nodes}, or add nodes",
            )

    def read_aliases(self) -> dict[str, str]:
        """Return each alias with the collection it names."""
        answer = self._wire.ask("list the aliases", self._client.get_aliases)
        return {description.alias_name: description.collection_name for description in answer.aliases}

    def switch_alias(self, alias: str, collection: str) -> None:
        """Move the alias from any other collection to this one, in one request."""
        created = models.CreateAlias(alias_name=alias, collection_name=collection)
        self._wire.ask(
            f"have alias {alias!r} name collection {collection!r}",
            self._client.update_collection_aliases,
            change_aliases_operations=[
                models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
                models.CreateAliasOperation(create_alias=created),
            ],
        )

    def create_snapshot(self, collection: str) -> Snapshot:
        """Take a snapshot on the node that answers, if it holds all shards of the collection.

        Raises:
            StoreError: the node lacks shards, or the snapshot failed.
        """
        action = f"take a snapshot of collection {collection!r}"
        shards = self._wire.ask(action, self._client.collection_cluster_info, collection_name=collection)
        here = {shard.shard_id for shard in shards.local_shards if shard.state == models.ReplicaState.ACTIVE}
        everywhere = {shard.shard_id for shard in shards.local_shards} | {
            shard.shard_id for shard in shards.remote_shards
        }
        if here != everywhere:
            raise StoreError(
                f"a snapshot is of one node, and {self._location} holds {len(here)} of the {len(everywhere)} shards of "
                f"collection {collection!r}. Nothing was changed.",
                "take one on every node, as docs/how-to/cluster.md says, and pass --no-snapshot",
            )
        named = self.read_aliases().get(collection, collection)
        try:
            made = self._wire.ask_once(action, self._client.create_snapshot, collection_name=collection, wait=True)
        except StoreError as error:
            raise StoreError(f"{error.message} Nothing was changed.", WITHOUT_SNAPSHOT) from None
        if made is None:
            what = f"cannot {action} in {self._location}: the server names no snapshot. Nothing was changed."
            raise StoreError(what, WITHOUT_SNAPSHOT)
        return Snapshot(made.name, named)


def is_paused(info: models.CollectionInfo) -> bool:
    """Return whether `ServerLoad.paused` keeps a collection from being indexed."""
    kept = (info.config.metadata or {}).get(BULK_LOAD_KEY)
    return bool(kept) and not info.config.optimizer_config.indexing_threshold


def read_recorded(info: models.CollectionInfo) -> int | None:
    """Return the recorded number of a collection's points."""
    recorded = (info.config.metadata or {}).get(RECORDED_KEY)
    return recorded if isinstance(recorded, int) else None


def find_sharding(info: models.CollectionInfo) -> Sharding:
    """Return how a collection is spread over nodes."""
    params = info.config.params
    return Sharding(params.shard_number, params.replication_factor, params.write_consistency_factor)


def check_sharding(where: str, info: models.CollectionInfo, wanted: Sharding) -> None:
    """Check that a collection is sharded as wanted.

    Raises:
        MismatchError: names each setting that differs, with both values.
    """
    found = find_sharding(info)
    differences = [
        f"{name} {found._asdict()[name]}, not {value}"
        for name, value in wanted._asdict().items()
        if value is not None and value != found._asdict()[name]
    ]
    if differences:
        cure = "leave these options out, or ingest into a new collection (--alias moves searches to it)"
        raise MismatchError(f"{where} has {', '.join(differences)}. Nothing was changed.", cure)
