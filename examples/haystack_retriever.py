"""Haystack: a retriever for a collection made with `xqg ingest --payload-layout haystack`.

pip install xqg-qdrant qdrant-haystack
python haystack_retriever.py PATH_OR_URL COLLECTION QUESTION
"""

import sys

from haystack import Pipeline, component
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from xqg_qdrant import Encoder


@component
class XqgQueryEmbedder:
    """A text embedder with the model that the collection was made with."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder, which adds its own prefixes and truncates."""
        self.encoder = encoder

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """Encode a question."""
        return {"embedding": self.encoder.encode_queries([text])[0].tolist()}


location, collection, question = sys.argv[1:]
encoder = Encoder()  # the collection's model, such as Encoder("onnx/multilingual-e5-small")
store = QdrantDocumentStore(
    **({"url": location} if location.startswith("http") else {"path": location}),
    index=collection,
    embedding_dim=encoder.dim,
    similarity="dot_product",
    use_sparse_embeddings=True,  # makes Haystack expect named vectors
)
pipeline = Pipeline()
pipeline.add_component("embedder", XqgQueryEmbedder(encoder))
pipeline.add_component("retriever", QdrantEmbeddingRetriever(store, top_k=3))
pipeline.connect("embedder.embedding", "retriever.query_embedding")
for document in pipeline.run({"embedder": {"text": question}})["retriever"]["documents"]:
    print(f"{document.score:.4f}", document.meta["title"], document.content[:60], sep="\t")
store.close()
