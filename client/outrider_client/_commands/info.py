"""`outrider info`: which model is served, how the server is set up, what it can do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.printing import AsJson, print_json, print_lines
from outrider_client._info import DraftLink, ModelInfo, ServerInfo


@connected
def info(
    client: Client,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="List the fields of GenerationConfig and which are served."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the served model, the server's set-up and its links to draft services."""
    model, server = client.model_info(), client.server_info()
    if as_json:
        print_json({"model": model, "server": server})
    elif fields:
        print_lines((line.field, f"{line.support:<8}  {line.note}") for line in server.capabilities)
    else:
        print_lines(_lines(model, server))


def _lines(model: ModelInfo, server: ServerInfo) -> Iterator[tuple[str, object]]:
    yield "model", f"{model.served_model_name} ({model.architecture}, {model.dtype})"
    yield "vocabulary", f"{model.vocab_size} tokens"
    yield "tokenizer", model.tokenizer_fingerprint if model.has_tokenizer else "none: ids only"
    yield "context", f"{model.max_model_len} tokens"
    yield "defaults", json.dumps(model.default_generation_config.to_dict())
    yield "server", f"outrider {server.version}, draft protocol {server.draft_protocol_version}"
    yield "up", f"{server.uptime_seconds:.0f} s, on {server.device or 'a device it does not tell'}"
    yield "running", f"at most {server.max_num_seqs} sequences"
    yield "waiting", f"at most {server.max_waiting_requests} requests"
    yield "KV cache", f"{server.kv_cache_tokens} tokens"
    for link in server.draft_links:
        yield "draft link", _link(link)
    if not server.draft_links:
        yield "draft link", "none"
    for plugin in server.plugins:
        yield "plug-in", f"{plugin.name} ({plugin.kind.replace('-', ' ')}): {plugin.summary}"


def _link(link: DraftLink) -> str:
    parts = [link.address, str(link.state), link.kind]
    if link.num_sessions:
        parts.append(f"{link.num_sessions} sessions")
    if link.latency_seconds:
        parts.append(f"{link.latency_seconds * 1000:.1f} ms")
    if link.num_offences:
        parts.append(f"{link.num_offences} offences")
    return ", ".join(part for part in (*parts, link.reason) if part)
