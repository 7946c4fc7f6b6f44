"""Many requests at once on one event loop; the target service batches them."""

from __future__ import annotations

import asyncio
import sys

from outrider_client import AsyncClient, GenerationConfig

PROMPTS = ["import os\n", "class Node:\n", "def read(path):\n", "for line in "]


async def main(address: str) -> None:
    """Generates from all prompts with the target service at `address`."""
    config = GenerationConfig(max_new_tokens=24)
    async with AsyncClient(address, timeout=120) as client:
        completions = await asyncio.gather(*(client.generate(text, config) for text in PROMPTS))
        for prompt, completion in zip(PROMPTS, completions, strict=True):
            print(repr(prompt + completion.text))

        # The first sixteen characters are enough: leaving the block ends the generation.
        text = ""
        async with client.stream("import ", config) as stream:
            async for chunk in stream:
                text += chunk.text
                if len(text) >= 16:
                    break
        print(repr("import " + text))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
