// Search a collection filled by xqg from JavaScript.
//
//     npm ci
//     node search.mjs MODEL_FOLDER URL COLLECTION QUESTION

import { QdrantClient } from "@qdrant/js-client-rest";

import { openEncoder } from "./encoder.mjs";

const [folder, url, collection, question] = process.argv.slice(2);
const encoder = await openEncoder(folder);
const client = new QdrantClient({ url, apiKey: process.env.QDRANT_API_KEY });

const { points } = await client.query(collection, {
  query: await encoder.encodeQuery(question),
  using: "xqg",
  limit: 3,
  with_payload: true,
});
for (const { score, payload } of points) {
  console.log([score.toFixed(4), payload.title, payload.text.slice(0, 60)].join("\t"));
}
