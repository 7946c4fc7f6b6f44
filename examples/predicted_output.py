"""An answer that is mostly known before: sent along as a prediction, it costs fewer rounds.

So it is when a file is edited, or a question is asked again. A wrong prediction costs a little
speed and changes nothing.
"""

from __future__ import annotations

import sys

from outrider_client import Client, GenerationConfig, SpeculationConfig


def main(address: str) -> None:
    """Generates the same text twice with the target service at `address`."""
    config = GenerationConfig(max_new_tokens=48)
    with Client(address) as client:
        first = client.generate("class Node:\n", config)
        prediction = SpeculationConfig(prediction_text=first.text)
        again = client.generate("class Node:\n", config, speculation=prediction)
    print(again.text == first.text)
    print(
        f"{first.speculation.num_rounds} rounds, {again.speculation.num_rounds} with a prediction"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
