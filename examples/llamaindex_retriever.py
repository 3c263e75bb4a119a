"""LlamaIndex: a retriever for a collection filled by xqg.

pip install xqg-qdrant llama-index-vector-stores-qdrant
python llamaindex_retriever.py PATH_OR_URL COLLECTION QUESTION
"""

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.vector_stores.qdrant import QdrantVectorStore
from pydantic import PrivateAttr
from qdrant_client import QdrantClient

from xqg_qdrant import Encoder


class XqgEmbedding(BaseEmbedding):
    """Embeddings by the model that the collection was made with."""

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder, which adds its own prefixes and truncates."""
        super().__init__()
        self._encoder = encoder

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encoder.encode_queries([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._encoder.encode_passages([text])[0].tolist()


location, collection, question = sys.argv[1:]
client = QdrantClient(url=location) if location.startswith("http") else QdrantClient(path=location)
store = QdrantVectorStore(collection, client=client, text_key="text", dense_vector_name="xqg")
# Use the collection's model, such as Encoder("onnx/multilingual-e5-small").
index = VectorStoreIndex.from_vector_store(store, embed_model=XqgEmbedding(Encoder()))
for found in index.as_retriever(similarity_top_k=3).retrieve(question):
    print(f"{found.score:.4f}", found.metadata["title"], found.text[:60], sep="\t")
client.close()
