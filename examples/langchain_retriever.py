"""LangChain: a retriever for a collection filled by xqg.

pip install xqg-qdrant langchain-qdrant
python langchain_retriever.py PATH_OR_URL COLLECTION QUESTION
"""

import sys

from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from xqg_qdrant import Encoder


class XqgEmbeddings(Embeddings):
    """Embeddings by the model that the collection was made with."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder, which adds its own prefixes and truncates."""
        self.encoder = encoder

    def embed_query(self, text: str) -> list[float]:
        """Encode a question."""
        return self.encoder.encode_queries([text])[0].tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Encode texts without augmentation; LangChain calls this once, for the vector's dimension."""
        return self.encoder.encode_passages(texts).tolist()


location, collection, question = sys.argv[1:]
client = QdrantClient(url=location) if location.startswith("http") else QdrantClient(path=location)
store = QdrantVectorStore(
    client,
    collection,
    XqgEmbeddings(Encoder()),  # the collection's model, such as Encoder("onnx/multilingual-e5-small")
    vector_name="xqg",
    content_payload_key="text",
    metadata_payload_key="metadata",
    distance=models.Distance.DOT,
)
retriever = store.as_retriever(search_kwargs={"k": 3})
for document in retriever.invoke(question):
    print(document.metadata["_id"], document.page_content[:60], sep="\t")
client.close()
