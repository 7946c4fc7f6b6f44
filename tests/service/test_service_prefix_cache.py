"""The prefix cache as callers see it: told in the usage, theirs alone, counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from outrider_client import Client, GenerationConfig, SpeculationConfig
from outrider_runtime.server import ServerSettings
from service.asking import ENDLESS
from service.harness import RunningService, settings_for

KEYS = {"alice": "the-key-of-alice-1", "bob": "the-key-of-bob-333"}
SHORT = GenerationConfig(max_new_tokens=2, clear_fields=ENDLESS)
TEXT = "a beginning that is long enough to fill a block or two"


@pytest.fixture
def address(folder: Path, tmp_path: Path) -> Iterator[str]:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(f"{name} {key}" for name, key in KEYS.items()))
    settings = settings_for(folder)
    server = ServerSettings(api_keys_file=keys)
    with RunningService(dataclasses.replace(settings, server=server)) as running:
        yield running.address


def cached(client: Client, text: str, salt: str = "") -> int:
    salted = SpeculationConfig(cache_salt=salt) if salt else None
    return client.generate(text, SHORT, speculation=salted).usage.cached_prompt_tokens


def test_callers_share_beginnings_with_themselves_alone(address: str) -> None:
    with (
        Client(address, api_key=KEYS["alice"]) as alice,
        Client(address, api_key=KEYS["bob"]) as bob,
    ):
        assert cached(alice, TEXT + "!") == 0
        assert cached(alice, TEXT + "?") > 16
        assert cached(bob, TEXT + "?") == 0
        assert cached(bob, TEXT + "?", "an end user of bob's") == 0
        assert cached(bob, TEXT + "!") > 16


def test_a_prompt_whose_hidden_states_are_asked_for_is_computed(address: str) -> None:
    config = dataclasses.replace(SHORT, output_hidden_states=True)
    with Client(address, api_key=KEYS["alice"]) as alice:
        plain = alice.generate(TEXT, SHORT)
        asked = alice.generate(TEXT, config)
    assert asked.usage.cached_prompt_tokens == 0
    assert asked.token_ids == plain.token_ids
