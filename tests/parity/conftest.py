"""Models with everything that is needed to compare: service, misleading drafter, transformers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from draft.hostile import serving
from exactness.loop_thread import ServiceThreads
from exactness.model_pairs import make_pair
from exactness.prompts import random_prompts
from exactness.running import target
from outrider_demo import TARGET_DIR, held_out_prompts
from parity.additions import PLUGINS
from parity.comparison import Comparison
from parity.drafter import Traitor
from parity.oracle import Oracle
from service.plugin_package import installed
from transformers import AutoTokenizer

SHIPPED = "the shipped pair"
ARCHITECTURES = ["llama", "gpt2", "gemma2", "qwen3_moe"]


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package of them is installed."""
    with installed(tmp_path_factory.mktemp("plugins")):
        yield


@pytest.fixture(scope="module", params=[*ARCHITECTURES, SHIPPED])
def comparison(
    request: pytest.FixtureRequest,
    threads: ServiceThreads,
    plugins: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Comparison]:
    if request.param == SHIPPED:
        num_batches = 3
        folder, tokenizer = TARGET_DIR, AutoTokenizer.from_pretrained(TARGET_DIR)
        prompts = [tokenizer(prompt.text).input_ids[:24] for prompt in held_out_prompts()[:8]]
    else:
        num_batches = 6
        pair = make_pair(tmp_path_factory.mktemp("pair"), request.param, num_layers=2)
        folder, tokenizer = pair.target, pair.tokenizer
        prompts = [*random_prompts(8, seed=41), [7]]
    traitor = Traitor()
    with (
        threads.drafters.entered(serving(traitor)) as drafter,
        target(threads, folder, drafts=[drafter.address], plugins=PLUGINS) as running,
    ):
        yield Comparison(
            running, traitor, Oracle(folder, tokenizer), prompts, num_batches=num_batches
        )
