"""A collection of demo passages, with the demo's questions as their queries, and the search page over a socket."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode

from short_passages import short_passages

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.demo import read_demo_qrels, read_demo_queries
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.pages.search import Finder
from xqg_qdrant.pages.server import listen, make_app, make_server
from xqg_qdrant.records import GeneratedQuery, QueriedPassage
from xqg_qdrant.stores import Store


class Answer(NamedTuple):
    """What came back of a request."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.body)


class Served:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def get(
        self,
        path: str,
        method: str = "GET",
        host: str | None = None,
        fetch: tuple[str, str] | None = None,
        **parameters: object,
    ) -> Answer:
        """Ask for a path; `fetch` is what a browser says: whose page asks, and for what."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        query = f"?{urlencode(parameters)}" if parameters else ""
        headers = {} if host is None else {"Host": host}
        if fetch is not None:
            headers |= {"Sec-Fetch-Site": fetch[0], "Sec-Fetch-Dest": fetch[1]}
        connection.request(method, path + query, headers=headers)
        response = connection.getresponse()
        answered = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Answer(response.status, answered, response.read().decode("utf-8"))
        finally:
            connection.close()


@contextmanager
def serving(finder: Finder, names: Iterable[str] = ()) -> Iterator[Served]:
    """Serve a collection at a free port, and end the server."""
    with listen(0) as listening:
        server = make_server(make_app(finder, names))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield Served(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(30)


def demo_rows(passages: int) -> list[QueriedPassage]:
    """Return the first passages that answer questions, short, each with those questions in seven languages."""
    texts = {query.query_id: GeneratedQuery(query.language, query.text) for query in read_demo_queries()}
    asked = defaultdict(list)
    for qrel in read_demo_qrels():
        asked[qrel.passage_id].append(texts[qrel.query_id])
    rows = [QueriedPassage(passage, tuple(asked[passage.passage_id])) for passage in short_passages()]
    return [row for row in rows if row.queries][:passages]


def fill(store: Store, collection: str, encoder: Encoder, rows: Sequence[QueriedPassage], **settings: Any) -> None:
    """Ingest passages with their queries, in the mean with a weight that can be seen."""
    recipe = make_recipe(None, **{"fusion": "mean", "alpha": 0.5, "renormalise": True, **settings})
    for _ in ingest(rows, store, collection, encoder, None, recipe):
        pass
