// A drafter in another language, made from protos/ alone: prompt lookup behind the draft protocol.
//
//   npm ci && node drafter.mjs [PORT]      listens on loopback; prints "listening on HOST:PORT"
//   outrider-target --draft 127.0.0.1:PORT ...
//   outrider-conformance 127.0.0.1:PORT    tries whether it keeps to the protocol

import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { continuation } from "./lookup.mjs";
import { Session } from "./session.mjs";

const PROTOS = fileURLToPath(new URL("../../protos", import.meta.url));
const PROTOCOL_VERSION = 1;
const MAX_SESSIONS = 1024;
const MAX_DEPTH = 64;

const DRAFTER = { kind: "prompt-lookup", maxSessions: MAX_SESSIONS };

let numSessions = 0;

// One link: the sessions of one target.
class Link {
  #sessions = new Map();

  // What a frame of the target is answered with.
  answer(frame) {
    const grows = [];
    const resyncs = [];
    for (const opened of frame.opens) {
      if (!sound(opened)) {
        resyncs.push({ session: opened.session, refused: true, reason: "makes no sense" });
      } else if (this.#sessions.size >= MAX_SESSIONS && !this.#sessions.has(opened.session)) {
        resyncs.push({ session: opened.session, refused: true, reason: "no room" });
      } else {
        this.#keep(opened);
        grows.push(this.#grow(opened.session));
      }
    }
    for (const commit of frame.commits) {
      const session = this.#sessions.get(commit.session);
      if (session?.commit(commit)) {
        grows.push(this.#grow(commit.session));
      } else {
        resyncs.push({ session: commit.session, heldLength: session?.committed.length ?? 0 });
      }
    }
    frame.closes.forEach(({ session }) => this.#forget(session));
    return { grows, resyncs };
  }

  close() {
    [...this.#sessions.keys()].forEach((number) => this.#forget(number));
  }

  #keep(opened) {
    const lastId = this.#sessions.get(opened.session)?.lastId;
    this.#forget(opened.session);
    this.#sessions.set(opened.session, new Session(opened, lastId));
    numSessions += 1;
  }

  #forget(number) {
    numSessions -= this.#sessions.delete(number) ? 1 : 0;
  }

  #grow(number) {
    const session = this.#sessions.get(number);
    return session.grow(number, continuation(session.committed, MAX_DEPTH));
  }
}

function sound({ tokenIds, limits }) {
  return tokenIds.length > 0 && limits != null && limits.window >= 1 && limits.depth <= 256;
}

function speculate(call) {
  let link;
  const fail = (code, details) => call.emit("error", { code, details });
  call.on("data", (frame) => {
    if (link !== undefined) {
      const response = link.answer(frame);
      if (response.grows.length + response.resyncs.length > 0) {
        call.write(response);
      }
    } else if (frame.hello?.protocolVersion === PROTOCOL_VERSION) {
      link = new Link();
      call.write({ welcome: { protocolVersion: PROTOCOL_VERSION, drafter: DRAFTER } });
    } else if (frame.hello) {
      fail(grpc.status.FAILED_PRECONDITION, `this drafter speaks version ${PROTOCOL_VERSION}`);
    } else {
      fail(grpc.status.INVALID_ARGUMENT, "the first frame of a link is its hello");
    }
  });
  call.on("end", () => call.end());
  call.on("close", () => link?.close());
  call.on("cancelled", () => link?.close());
}

function describe(_, answer) {
  answer(null, {
    minProtocolVersion: PROTOCOL_VERSION,
    maxProtocolVersion: PROTOCOL_VERSION,
    drafter: DRAFTER,
    numSessions,
  });
}

const definition = protoLoader.loadSync("outrider/v1/draft.proto", {
  includeDirs: [PROTOS],
  longs: String, // session numbers have 64 bits, numbers here 53
  arrays: true,
});
const { outrider } = grpc.loadPackageDefinition(definition);
const server = new grpc.Server();
server.addService(outrider.v1.DraftService.service, { speculate, describe });
const address = `127.0.0.1:${process.argv[2] ?? 0}`;
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) {
    console.error(`cannot listen on ${address}: ${error.message}`);
    process.exit(1);
  }
  console.log(`listening on 127.0.0.1:${port}`);
});
