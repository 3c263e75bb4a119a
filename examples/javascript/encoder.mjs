// Encode questions with a model folder of `xqg export`, to the same vectors as xqg.
//
// Only the folder is read; nothing is downloaded.

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { Tokenizer } from "@huggingface/tokenizers";
import { InferenceSession, Tensor } from "onnxruntime-node";

const readJson = async (path) => JSON.parse(await readFile(path, "utf8"));

export async function openEncoder(folder) {
  const about = await readJson(join(folder, "xqg.json"));
  const tokenizer = new Tokenizer(await readJson(join(folder, "tokenizer.json")), {});
  // The runtime finds weights beside the graph by its path.
  const session = await InferenceSession.create(join(folder, "model.onnx"));

  async function encodeQuery(text) {
    let { ids } = tokenizer.encode(about.query_prefix + text);
    if (ids.length > about.max_query_tokens) {
      // Truncate before the last token, which ends every text.
      ids = [...ids.slice(0, about.max_query_tokens - 1), ids.at(-1)];
    }
    const shape = [1, ids.length];
    const inputs = {
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
      attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    };
    const feeds = Object.fromEntries(session.inputNames.map((name) => [name, inputs[name]]));
    // The graph pools and normalises: its output is the vector.
    const outputs = await session.run(feeds);
    return Array.from(outputs[session.outputNames[0]].data);
  }

  return { encodeQuery };
}
