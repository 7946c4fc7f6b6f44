// Streams a completion from Node, with nothing of ours but the .proto files.
//
//   npm install @grpc/grpc-js @grpc/proto-loader
//   node examples/stream.mjs 127.0.0.1:50051 "def main("

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [address = "127.0.0.1:50051", text = "def main("] = process.argv.slice(2);

const definition = protoLoader.loadSync("outrider/v1/generation.proto", {
  includeDirs: [fileURLToPath(new URL("../protos", import.meta.url))],
  longs: String, // seeds have 64 bits
  enums: String,
  oneofs: true,
});
const { outrider } = grpc.loadPackageDefinition(definition);
const client = new outrider.v1.GenerationService(address, grpc.credentials.createInsecure());

const call = client.generate(
  { text, generationConfig: { maxNewTokens: 64, doSample: true, topP: 0.9 }, seed: "7" },
  { deadline: Date.now() + 60_000 },
);
for await (const { chunk, complete } of call) {
  if (chunk?.text) {
    process.stdout.write(chunk.text);
  }
  if (complete) {
    const { numAcceptedTokens = 0, numDraftTokens = 0 } = complete.speculation;
    console.log(`\n${numAcceptedTokens} of ${numDraftTokens} draft tokens accepted`);
  }
}
client.close();
