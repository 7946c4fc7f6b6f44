"""Whole completions: from text or token ids, several at once, plain decoding to compare."""

from __future__ import annotations

import sys

from outrider_client import Client, GenerationConfig, SpeculationConfig


def main(address: str) -> None:
    """Generates with the target service at `address`."""
    with Client(address) as client:
        greedy = client.generate("import os\n", GenerationConfig(max_new_tokens=16))
        print(greedy.text, greedy.finish_reason, greedy.usage.total_seconds)

        # The same from token ids. The text never depends on the drafter: plain decoding agrees.
        ids = client.tokenize("import os\n")
        plain = client.generate(
            ids, GenerationConfig(max_new_tokens=16), speculation=SpeculationConfig(enabled=False)
        )
        print(plain.token_ids == greedy.token_ids, plain.usage.total_seconds)

        # Three samples of one prompt; the seed that was drawn gives them again.
        config = GenerationConfig(max_new_tokens=16, do_sample=True, num_return_sequences=3)
        samples = client.generate("import os\n", config)
        again = client.generate("import os\n", config, seed=samples.seed)
        print([sequence.text for sequence in samples.sequences])
        print([sequence.text for sequence in again.sequences])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
