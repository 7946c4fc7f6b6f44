"""Keys of callers: several for one, replaced while the service runs, never told to anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from outrider_runtime.caller_keys import THE_CALLER, CallerKeys
from outrider_runtime.errors import StartupError

OLD, NEW, OTHER = "old-key-of-alice-1", "new-key-of-alice-2", "the-key-of-bob-333"


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# who may call\n\nalice {OLD}\nbob   {OTHER}\n")
    return path


def test_nobody_needs_a_key_where_there_is_none() -> None:
    assert not CallerKeys().required
    assert CallerKeys().name_of("") is None


def test_keys_of_the_flag_and_of_the_file_open(file: Path) -> None:
    keys = CallerKeys("the one key", file)
    assert keys.required
    assert keys.name_of("the one key") == THE_CALLER
    assert keys.name_of(OLD) == "alice"
    assert keys.name_of(OTHER) == "bob"
    assert keys.name_of(NEW) is keys.name_of("") is keys.name_of("alice") is None


def test_a_key_is_replaced_without_a_moment_in_which_none_opens(file: Path) -> None:
    clock = Clock()
    keys = CallerKeys(None, file, clock=clock)
    file.write_text(f"alice {OLD}\nalice {NEW}\n")
    assert keys.name_of(NEW) is None  # it is not looked at with every call
    clock.now += 1
    assert keys.name_of(OLD) == keys.name_of(NEW) == "alice"
    assert keys.name_of(OTHER) is None  # bob is out
    file.write_text(f"alice {NEW}\n")
    clock.now += 1
    assert keys.name_of(OLD) is None
    assert keys.name_of(NEW) == "alice"


@pytest.mark.parametrize("broken", ["", "alice\n", f"alice {NEW} and more\n"])
def test_a_file_that_makes_no_sense_any_more_changes_nothing(file: Path, broken: str) -> None:
    clock = Clock()
    keys = CallerKeys(None, file, clock=clock)
    file.write_text(broken)
    clock.now += 1
    assert keys.name_of(OLD) == "alice"
    file.write_text(f"alice {NEW}\n")
    clock.now += 1
    assert keys.name_of(NEW) == "alice"


def test_a_file_that_is_gone_for_a_moment_changes_nothing(file: Path) -> None:
    clock = Clock()
    keys = CallerKeys(None, file, clock=clock)
    file.unlink()
    clock.now += 1
    assert keys.name_of(OLD) == "alice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nobody\n", "holds no key"),
        ("alice\n", "line 1: not a name and a key"),
        ("\nalice secret word and more\n", "line 2: not a name and a key"),
        ("alice short\n", "16 or more"),
        ("alice kéy-kéy-kéy-kéy-kéy\n", "ASCII"),
        (f"alice {OLD}\nbob {OLD}\n", "line 2: bob has the key of somebody else"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_clear_line_without_a_key(
    file: Path, text: str, said: str
) -> None:
    file.write_text(text)
    with pytest.raises(StartupError, match=said) as refused:
        CallerKeys(None, file)
    for word in ("secret", "short", "kéy", OLD):
        assert word not in str(refused.value)


def test_a_file_that_is_not_there_or_not_text_is_one_clear_line(file: Path) -> None:
    file.write_bytes(b"alice \xff\xff\xff")
    with pytest.raises(StartupError, match="is not text"):
        CallerKeys(None, file)
    with pytest.raises(StartupError, match="cannot read"):
        CallerKeys(None, file.with_name("other"))
