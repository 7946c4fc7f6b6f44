// A client of the contract made from nothing but protos/, as any language would.
//
//   node client.mjs ADDRESS stream PROMPT N   streams N tokens greedily; one JSON line per message
//   node client.mjs ADDRESS cancel PROMPT [N] asks for N (256), cancels after the first; one JSON line
//
// PROMPT is text, or token ids as a JSON array. Exits with 1 and one JSON line when a call fails.

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const DEADLINE_MS = 60_000;

function connect(address) {
  const definition = protoLoader.loadSync("outrider/v1/generation.proto", {
    includeDirs: [PROTOS],
    longs: String, // seeds have 64 bits, numbers here 53
    enums: String,
    oneofs: true,
  });
  const { outrider } = grpc.loadPackageDefinition(definition);
  return new outrider.v1.GenerationService(address, grpc.credentials.createInsecure());
}

function generate(client, prompt, generationConfig) {
  const request = { generationConfig };
  if (prompt.startsWith("[")) {
    request.tokenIds = { ids: JSON.parse(prompt) };
  } else {
    request.text = prompt;
  }
  return client.generate(request, { deadline: Date.now() + DEADLINE_MS });
}

function print(value) {
  console.log(JSON.stringify(value));
}

function failed(error) {
  return { status: grpc.status[error.code], details: error.details };
}

async function stream(client, prompt, count) {
  for await (const message of generate(client, prompt, { maxNewTokens: count })) {
    const { chunk, complete } = message;
    if (chunk?.started) {
      const { requestId, seed, effectiveConfig } = chunk.started;
      print({ started: { requestId, seed, maxNewTokens: effectiveConfig.maxNewTokens } });
    } else if (chunk) {
      const { text, tokenIds, drafted } = chunk;
      print({ chunk: { text, tokenIds, drafted } });
    } else if (complete) {
      const [{ finishReason }] = complete.sequences;
      const { completionTokens } = complete.usage;
      const { numDrafts, numAcceptedTokens } = complete.speculation;
      print({ complete: { finishReason, completionTokens, numDrafts, numAcceptedTokens } });
    }
  }
}

async function cancel(client, prompt, count) {
  const call = generate(client, prompt, { maxNewTokens: count });
  let received = 0;
  const status = await new Promise((resolve) => {
    call.on("data", ({ chunk }) => {
      received += chunk?.tokenIds?.length ?? 0;
      if (received > 0) {
        call.cancel();
      }
    });
    call.on("error", (error) => resolve(failed(error)));
    call.on("end", () => resolve({ status: "OK", details: "the stream ended by itself" }));
  });
  print({ received, ...status });
}

const [address, command, prompt, count = "256"] = process.argv.slice(2);
const run = { stream, cancel }[command];
if (run === undefined || prompt === undefined || !/^[1-9][0-9]*$/.test(count)) {
  console.error("usage: node client.mjs ADDRESS (stream | cancel) PROMPT [N]");
  process.exit(2);
}
const client = connect(address);
try {
  await run(client, prompt, Number(count));
} catch (error) {
  print(failed(error));
  process.exitCode = 1;
} finally {
  client.close();
}
