"""What a server does with a collection as a whole: shards and replicas on its nodes, aliases, snapshots.

Knows the server's words for them. Knows nothing of points.
"""

from __future__ import annotations

from qdrant_client import QdrantClient, models

from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.stores.protocol import Sharding, Snapshot
from xqg_qdrant.stores.wire import Wire

WITHOUT = "Cure: make one by the server's own means, or go on without (--no-snapshot)"


class Cluster:
    """A server, of one node or of several."""

    def __init__(self, wire: Wire, client: QdrantClient, location: str) -> None:
        self._wire = wire
        self._client = client
        self._location = location

    def check_nodes(self, wanted: Sharding) -> None:
        """Refuse more replicas than there are nodes: a server would promise them, and keep fewer.

        Raises:
            InputError: says how many nodes there are.
        """
        if wanted.replication_factor is None or wanted.replication_factor < 2:
            return
        status = self._wire.ask("count the nodes", self._client.cluster_status)
        nodes = len(status.peers) if isinstance(status, models.ClusterStatusOneOf1) else 1
        if nodes < wanted.replication_factor:
            raise InputError(
                f"{wanted.replication_factor} replicas want as many nodes, and {self._location} has {nodes}. "
                f"Cure: a --replication-factor of at most {nodes}, or more nodes."
            )

    def read_aliases(self) -> dict[str, str]:
        """Return the collection that each alias names."""
        answer = self._wire.ask("list the aliases", self._client.get_aliases)
        return {description.alias_name: description.collection_name for description in answer.aliases}

    def switch_alias(self, alias: str, collection: str) -> None:
        """Take the alias from the collection that has it, and give it to this one, in one request."""
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
        """Have the node that answers keep its shards of a collection, where these are all of them.

        Raises:
            StoreError: they are not, or it cannot.
        """
        action = f"take a snapshot of collection {collection!r}"
        shards = self._wire.ask(action, self._client.collection_cluster_info, collection_name=collection)
        here = {shard.shard_id for shard in shards.local_shards if shard.state == models.ReplicaState.ACTIVE}
        everywhere = {shard.shard_id for shard in shards.local_shards} | {
            shard.shard_id for shard in shards.remote_shards
        }
        if here != everywhere:
            cure = "Cure: take one on every node, as docs/how-to/cluster.md says, and give --no-snapshot"
            raise StoreError(
                f"a snapshot is of one node, and {self._location} holds {len(here)} of the {len(everywhere)} shards of "
                f"collection {collection!r}. {cure}. Nothing was changed."
            )
        named = self.read_aliases().get(collection, collection)
        try:
            made = self._wire.ask_once(action, self._client.create_snapshot, collection_name=collection, wait=True)
        except StoreError as error:
            raise StoreError(f"{str(error).partition(' Cure: ')[0]} {WITHOUT}. Nothing was changed.") from None
        if made is None:
            raise StoreError(f"cannot {action} in {self._location}: it names none. {WITHOUT}. Nothing was changed.")
        return Snapshot(made.name, named)


def check_sharding(where: str, info: models.CollectionInfo, wanted: Sharding) -> None:
    """Refuse a collection that is spread otherwise than wanted.

    Raises:
        MismatchError: names each setting with both values, and the cure.
    """
    params = info.config.params
    found = Sharding(params.shard_number, params.replication_factor, params.write_consistency_factor)
    differences = [
        f"{name} {found._asdict()[name]}, not {value}"
        for name, value in wanted._asdict().items()
        if value is not None and value != found._asdict()[name]
    ]
    if differences:
        cure = "Cure: leave these options out, or ingest into a new collection (with --alias, searches go over to it)"
        raise MismatchError(f"{where} has {', '.join(differences)}. {cure}. Nothing was changed.")
