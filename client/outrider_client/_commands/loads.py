"""`outrider loads`: how busy the server is."""

from __future__ import annotations

from outrider_client._client import Client
from outrider_client._commands.connected import connected
from outrider_client._commands.printing import AsJson, print_json, print_lines


@connected
def loads(client: Client, as_json: AsJson = False) -> None:
    """Show how busy the server is, and how speculation has gone since its start."""
    found = client.loads()
    if as_json:
        print_json(found)
        return
    drafted = found.speculation
    print_lines(
        [
            ("running", f"{found.num_running_sequences} of {found.max_num_seqs} sequences"),
            ("waiting", f"{found.num_waiting_requests} of {found.max_waiting_requests} requests"),
            ("longest wait", f"{found.oldest_waiting_seconds:.1f} s"),
            ("new requests", "refused: it drains" if found.draining else "taken"),
            ("draft links", f"{found.num_ready_draft_links} ready"),
            ("KV cache", f"{found.kv_cache_usage:.1%} in use"),
            ("generated", f"{found.num_generated_tokens} tokens"),
            ("preempted", f"{found.num_preemptions} times"),
            ("drafted", f"{drafted.num_draft_tokens} tokens"),
            ("accepted", f"{drafted.num_accepted_tokens} tokens"),
            ("acceptance", f"{drafted.draft_acceptance_rate:.1%}"),
            ("mean length", f"{drafted.mean_acceptance_length:.2f}"),
        ]
    )
