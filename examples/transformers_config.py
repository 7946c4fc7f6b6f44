"""Takes over a model's generation settings: from its folder, or from a transformers object."""

from __future__ import annotations

import importlib.util
import sys

from outrider_client import Client, GenerationConfig


def main(address: str, folder: str | None = None) -> None:
    """Generates at `address` with the generation_config.json of a folder, if one is given."""
    config = GenerationConfig() if folder is None else GenerationConfig.from_pretrained(folder)
    unused = config.update(max_new_tokens=16, do_sample=True, temperature=0.8)
    assert not unused, "names that are not options come back"
    print(config.get_generation_mode())
    with Client(address) as client:
        completion = client.generate("import ", config, seed=1)
        print(completion.text)
        print(completion.effective_config)  # over the model's own, over transformers' defaults

        if importlib.util.find_spec("transformers"):
            from transformers import GenerationConfig as TransformersConfig

            theirs = TransformersConfig(max_new_tokens=16, do_sample=True, temperature=0.8)
            print(client.generate("import ", theirs, seed=1).text)


if __name__ == "__main__":
    main(*(sys.argv[1:3] or ["127.0.0.1:50051"]))
