"""qdrant-client alone, without xqg, as a client in any language does it.

    python plain_client.py MODEL_FOLDER PATH_OR_URL COLLECTION QUESTION

The collection's model encodes the question, with the prefix and maximum length from its `xqg.json`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from qdrant_client import QdrantClient
from tokenizers import Tokenizer

folder, location, collection, question = sys.argv[1:]

about = json.loads(Path(folder, "xqg.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_padding()
tokenizer.enable_truncation(about["max_query_tokens"])
encoding = tokenizer.encode(about["query_prefix"] + question)

# The graph pools and normalises: its output is the vector.
options = SessionOptions()
# Without it, a CPU that lacks VNNI rounds off large products of an int8 model.
options.add_session_config_entry("session.x64quantprecision", "1")
session = InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
feeds = {"input_ids": np.array([encoding.ids]), "attention_mask": np.array([encoding.attention_mask])}
vector = session.run(None, {model_input.name: feeds[model_input.name] for model_input in session.get_inputs()})[0][0]

client = QdrantClient(url=location) if location.startswith("http") else QdrantClient(path=location)
for hit in client.query_points(collection, query=vector, using="xqg", limit=3).points:
    print(f"{hit.score:.4f}", hit.payload["title"], hit.payload["text"][:60], sep="\t")
client.close()
