"""A killed target breaks its streams; another in its place says the same, without a hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from outrider_client import Client, GenerationConfig, SpeculationConfig, StreamInterruptedError
from outrider_demo.processes import Service
from service.asking import ENDLESS
from soak.drafters import free_port

CONFIG = GenerationConfig(
    max_new_tokens=400,
    do_sample=True,
    num_assistant_tokens=3,
    num_assistant_tokens_schedule="constant",
    clear_fields=ENDLESS,
)
DRAFTED = SpeculationConfig(method="combined")


@pytest.mark.slow
def test_a_killed_target_is_replaced_and_its_drafter_serves_the_next(folder: Path) -> None:
    port = free_port()
    with Service("outrider_draft", ["--method", "prompt-lookup"]) as drafter:
        flags = ["--model", str(folder), "--port", str(port), "--draft", drafter.address]
        first = Service("outrider_target", flags)
        first.start()
        with Client(first.address, max_retries=10) as client:
            with client.stream("abcabc", CONFIG, seed=3, speculation=DRAFTED) as stream:
                next(stream)
                first.kill()
                with pytest.raises(StreamInterruptedError) as caught:
                    stream.collect()
            assert caught.value.partial is not None
            begun = list(caught.value.partial.sequences[0].token_ids)
            with Service("outrider_target", flags) as second:
                assert second.address == first.address
                plain = client.generate(
                    "abcabc", CONFIG, seed=3, speculation=SpeculationConfig(enabled=False),
                    timeout=60,
                )  # fmt: skip
                again = client.generate("abcabc", CONFIG, seed=3, speculation=DRAFTED)
                links = client.server_info().draft_links
                loads = client.loads()
    assert begun == plain.sequences[0].token_ids[: len(begun)]
    assert again.sequences[0].token_ids == plain.sequences[0].token_ids
    assert again.speculation.num_accepted_tokens > 0
    assert (loads.num_running_sequences, loads.kv_cache_usage) == (0, 0)
    assert sum(link.num_sessions for link in links) == 0
