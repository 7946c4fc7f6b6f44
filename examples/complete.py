"""The shortest program: a prompt, a completion. The same seed gives the same text again."""

from __future__ import annotations

import sys

from outrider_client import Client, GenerationConfig


def main(address: str) -> None:
    """Completes a prompt with the target service at `address`."""
    config = GenerationConfig(max_new_tokens=32, do_sample=True, temperature=0.8)
    with Client(address) as client:
        print(client.generate("def main(", config, seed=7).text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
