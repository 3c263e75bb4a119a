"""Before and after a load: the server's version and limits, payload indexes, when it indexes vectors.

While an empty collection is filled the server indexes nothing, and afterwards as before, whatever happens: the former
threshold is kept with the collection, so where a process was killed meanwhile the next one that writes restores it.
Knows a collection's settings. Knows nothing of points.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_qdrant.errors import StoreError
from xqg_qdrant.stores.limits import check_write
from xqg_qdrant.stores.protocol import Indexing
from xqg_qdrant.stores.wire import NotFoundError, Wire

BULK_LOAD_KEY = "xqg_bulk_load"
THRESHOLD = "indexing_threshold"
INDEXED_FIELDS = {"passage_id": models.PayloadSchemaType.KEYWORD}

POLL_SECONDS = 1.0
# Until its optimiser has looked at the collection, a server calls it green although there is work.
GREEN_IN_A_ROW = 2
STUCK_SECONDS = 900.0


class ServerLoad:
    """What a server needs besides the points themselves."""

    def __init__(self, wire: Wire, client: QdrantClient, location: str) -> None:
        self._wire = wire
        self._client = client
        self._location = location
        self._prepared: set[str] = set()

    def require_version(self, feature: str, first: tuple[int, int]) -> None:
        """Refuse a server that is older than what a feature needs.

        Raises:
            StoreError: names both versions, and the cure.
        """
        told = self._wire.ask("read the version", self._client.info).version
        version = re.match(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?\b", told)
        if version is None or (int(version[1]), int(version[2])) < first:
            cure = "Cure: upgrade the server, or use the embedded store edge:DIR"
            found, needed = version[0] if version else "of an unknown version", ".".join(map(str, first))
            raise StoreError(f"{self._location} is Qdrant {found}; {feature} need {needed} or later. {cure}.")

    def prepare(self, collection: str, dim: int) -> None:
        """Make a collection ready for writing, once: its limits, its payload indexes, what a killed load left.

        Raises:
            StoreError: a limit closes the collection to new points.
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
        self.resume(collection)
        self._prepared.add(collection)

    def forget(self, collection: str) -> None:
        """Prepare a collection of this name again: it was deleted."""
        self._prepared.discard(collection)

    @contextmanager
    def paused(self, collection: str) -> Iterator[None]:
        """Have nothing indexed for a while, where the server tells what to restore."""
        action = f"pause the indexing of {collection!r}"
        try:
            config = self._read(action, collection).config.optimizer_config
            # With prevent_unoptimized a write waits for the index, which would never come.
            if config.indexing_threshold and not getattr(config, "prevent_unoptimized", None):
                self._update(action, collection, metadata={BULK_LOAD_KEY: {THRESHOLD: config.indexing_threshold}})
                self._update(action, collection, optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0))
            yield
        finally:
            self.resume(collection)

    def resume(self, collection: str) -> None:
        """Restore what `paused` changed, also that of a process that did not come to it."""
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

    def watch(self, collection: str) -> Iterator[Indexing]:
        """Yield until the server has indexed what it wants to.

        Raises:
            StoreError: it failed, or makes no headway.
        """
        action = f"index collection {collection!r}"
        started = last_headway = time.monotonic()
        indexed, green, changed = -1, 0, False
        while True:
            info = self._read(action, collection)
            now = time.monotonic()
            if info.status == models.CollectionStatus.RED:
                raise StoreError(f"the server cannot {action}. Cure: look at the server's log.")
            if info.status == models.CollectionStatus.GREY:
                # After a restart it waits for a change of its settings; this one changes nothing.
                self._update(action, collection, optimizers_config=models.OptimizersConfigDiff())
            green = green + 1 if info.status == models.CollectionStatus.GREEN else 0
            changed = changed or not green
            yield Indexing(now - started, changed)
            if green == GREEN_IN_A_ROW:
                return
            if info.indexed_vectors_count != indexed:
                indexed, last_headway = info.indexed_vectors_count or 0, now
            if now - last_headway > STUCK_SECONDS:
                cure = "Cure: look at the server's log, then run xqg optimise; the points are stored"
                raise StoreError(f"the server has indexed nothing of {collection!r} for {STUCK_SECONDS:.0f} s. {cure}.")
            time.sleep(POLL_SECONDS)

    def _read(self, action: str, collection: str) -> models.CollectionInfo:
        return self._wire.ask(action, self._client.get_collection, collection_name=collection)

    def _update(self, action: str, collection: str, **settings: Any) -> None:
        self._wire.ask(action, self._client.update_collection, collection_name=collection, **settings)
