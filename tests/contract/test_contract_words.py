"""The words both ends share are what they promise, and cost nothing to import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from outrider_contract.errors import Reason
from outrider_contract.metadata import is_request_id


@pytest.mark.parametrize("text", ["a", "r-1 x", "~" * 128])
def test_printable_ascii_of_up_to_128_characters_names_a_request(text: str) -> None:
    assert is_request_id(text)


@pytest.mark.parametrize("text", ["", "a" * 129, "a\nb", "é", "\x7f", "a\x00"])
def test_anything_else_does_not_name_a_request(text: str) -> None:
    assert not is_request_id(text)


def test_reasons_are_their_own_names() -> None:
    # ErrorInfo asks for UPPER_SNAKE_CASE of at most 63 characters.
    for reason in Reason:
        assert reason.value == reason.name
        assert reason.value.isupper()
        assert len(reason.value) <= 63


def test_the_contract_imports_nothing_heavy() -> None:
    code = (
        "import outrider_contract.generation_config, outrider_contract.errors,"
        " outrider_contract.metadata, sys;"
        "print(sorted(sys.modules.keys() & {'torch', 'numpy', 'transformers', 'structlog'}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"
