"""FastEmbed: questions as `models.Document`, which qdrant-client itself encodes.

    pip install fastembed
    python fastembed_documents.py MODEL_FOLDER PATH_OR_URL COLLECTION QUESTION

FastEmbed needs one file more than a model folder has, and adds no prefix itself. It depends on `onnxruntime`, which
overwrites `onnxruntime-gpu`: next to xqg, install it with `pip install --no-deps fastembed`.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from qdrant_client import QdrantClient, models
from tokenizers import Tokenizer

folder, location, collection, question = sys.argv[1:]
about = json.loads(Path(folder, "xqg.json").read_text(encoding="utf-8"))

with tempfile.TemporaryDirectory() as own:
    shutil.copytree(folder, own, dirs_exist_ok=True)
    # One question at a time needs no padding, but FastEmbed requires a padding token.
    token = Tokenizer.from_file(f"{folder}/tokenizer.json").id_to_token(0)
    config = {"model_max_length": about["max_query_tokens"], "pad_token": token}
    Path(own, "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    TextEmbedding.add_custom_model(
        model="xqg-encoder",
        pooling=PoolingType.DISABLED,  # the graph pools
        normalization=False,
        sources=ModelSource(url="https://example.org/never-fetched"),
        dim=about["dim"],
        model_file="model.onnx",
    )
    client = QdrantClient(url=location) if location.startswith("http") else QdrantClient(path=location)
    query = models.Document(
        text=about["query_prefix"] + question, model="xqg-encoder", options={"specific_model_path": own}
    )
    for hit in client.query_points(collection, query=query, using="xqg", limit=3).points:
        print(f"{hit.score:.4f}", hit.payload["title"], hit.payload["text"][:60], sep="\t")
    client.close()
