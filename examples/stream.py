"""Streams a completion as the target decides it, then says what speculation did."""

from __future__ import annotations

import sys

from outrider_client import Client, GenerationConfig


def main(address: str) -> None:
    """Streams from the target service at `address`."""
    config = GenerationConfig(max_new_tokens=64, do_sample=True, top_p=0.9)
    with Client(address) as client:
        with client.stream("def main(", config, seed=7) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        print()
        stats = stream.final.speculation
        print(f"{stats.num_accepted_tokens} of {stats.num_draft_tokens} draft tokens accepted")
        print(f"{stats.mean_acceptance_length:.2f} tokens a drafted round")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
