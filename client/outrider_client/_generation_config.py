"""How a text is generated, in transformers' vocabulary: the same fields, names, files and methods.

Knows nothing of calls. What values make sense is in `_generation_rules`, files and foreign objects
in `_generation_json`, the message in `outrider_contract.generation_config`.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.v1 import generation_config_pb2
from outrider_contract.generation_config import (
    FIELD_NAMES,
    ConfigValueError,
    from_json_dict,
    to_json_dict,
)

from outrider_client import _generation_json, _generation_rules
from outrider_client._errors import InvalidRequestError
from outrider_client._generation_fields import GenerationFields
from outrider_client._generation_json import SupportsToDict
from outrider_client._generation_mode import GenerationMode, generation_mode


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class GenerationConfig(GenerationFields):
    """How to generate: every field of transformers' GenerationConfig, and its methods.

    None means unset: the model's generation_config.json decides, then transformers' default.
    `clear_fields` names fields to be unset on purpose, whatever the model's file says. Which fields
    a server honours is in `client.server_info().capabilities`; one it does not is refused by name,
    never ignored.

    Raises:
        TypeError: A name is not a field.
        InvalidRequestError: A value breaks a rule; see `validate`. It is a `ValueError`.
    """

    def __post_init__(self) -> None:
        self.validate()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GenerationConfig):
            return NotImplemented
        return self._compared() == other._compared()

    __hash__ = None  # type: ignore[assignment]  # mutable, as transformers' own

    def __repr__(self) -> str:
        values = self.to_dict()
        if self.clear_fields:
            values["clear_fields"] = list(self.clear_fields)
        return f"GenerationConfig({', '.join(f'{k}={v!r}' for k, v in values.items())})"

    @classmethod
    def from_dict(
        cls, values: Mapping[str, object], *, ignore_unknown: bool = False
    ) -> GenerationConfig:
        """Reads transformers' JSON form.

        Args:
            values: Options by name; None means unset.
            ignore_unknown: Skip names that are not fields. transformers keeps such names silently;
                here they are refused by default, since most are typos.

        Raises:
            InvalidRequestError: A name is unknown, or a value breaks a rule.
        """
        config = cls()
        for name, value in _generation_json.options(values).items():
            if name in FIELD_NAMES:
                setattr(config, name, value)
            elif not ignore_unknown:
                raise InvalidRequestError(
                    f"{name}: is not a field of GenerationConfig; ignore_unknown=True skips it",
                    field=name,
                )
        config.validate()
        return config

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, ignore_unknown: bool = False
    ) -> GenerationConfig:
        """Reads a generation_config.json.

        Args:
            path: The file, or a local folder that has it. Nothing is downloaded.
            ignore_unknown: As in `from_dict`; some models keep notes of their own in the file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, or its values are not valid.
        """
        file = _generation_json.file_in(Path(path), _generation_json.FILE_NAME)
        return cls.from_dict(_generation_json.read_json(file), ignore_unknown=ignore_unknown)

    @classmethod
    def from_model_config(
        cls, config: Mapping[str, Any] | SupportsToDict | str | os.PathLike[str]
    ) -> GenerationConfig:
        """Reads the options that older models keep in their own configuration.

        Args:
            config: transformers' configuration object, its dict, or a config.json or the local
                folder that has it. Its other entries are skipped.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, or its values are not valid.
        """
        if isinstance(config, str | os.PathLike):
            file = _generation_json.file_in(Path(config), _generation_json.MODEL_FILE_NAME)
            config = _generation_json.read_json(file)
        return cls.from_dict(_generation_json.model_options(config), ignore_unknown=True)

    @classmethod
    def from_transformers(
        cls, config: SupportsToDict, *, ignore_unknown: bool = False
    ) -> GenerationConfig:
        """Takes over one of transformers' own objects.

        Raises:
            InvalidRequestError: It holds a name that is not a field, or a value breaks a rule.
        """
        return cls.from_dict(_generation_json.object_values(config), ignore_unknown=ignore_unknown)

    @classmethod
    def from_message(cls, message: generation_config_pb2.GenerationConfig) -> GenerationConfig:
        """The configuration in a message, as it is: a server's word is not validated."""
        config = cls()
        for name, value in to_json_dict(message).items():
            setattr(config, name, value)
        config.clear_fields = tuple(message.clear_fields)
        return config

    def to_message(self) -> generation_config_pb2.GenerationConfig:
        """The message of the contract.

        Raises:
            InvalidRequestError: A value breaks a rule; see `validate`.
        """
        values = self.to_dict()
        try:
            message = from_json_dict(values)
        except ConfigValueError as error:
            raise InvalidRequestError(str(error), field=error.field) from None
        _generation_rules.check(self, values)
        message.clear_fields.extend(self._checked_clear_fields(values))
        return message

    def to_dict(self) -> dict[str, object]:
        """The set fields in transformers' JSON shapes, without `clear_fields`."""
        return {
            name: _generation_json.plain(value)
            for name in FIELD_NAMES
            if (value := getattr(self, name)) is not None
        }

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes generation_config.json as transformers does; its `from_pretrained` reads it.

        As there, `compile_config` is left out. (transformers itself cannot read a SynthID
        watermark from a file; this library can.)

        Args:
            folder: Made if it does not exist.

        Raises:
            InvalidRequestError: A value breaks a rule, or `clear_fields` is set, for which
                transformers has no word.
        """
        self.validate()
        if self.clear_fields:
            raise InvalidRequestError(
                "clear_fields: cannot be saved, transformers' file has no word for it",
                field="clear_fields",
            )
        values = self.to_dict()
        values.pop("compile_config", None)
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (Path(folder) / _generation_json.FILE_NAME).write_text(text, encoding="utf-8")

    def update(self, *, defaults_only: bool = False, **values: object) -> dict[str, object]:
        """Sets fields by name; either all of them or, when a value breaks a rule, none.

        A field that gets a value is no longer in `clear_fields`.

        Args:
            defaults_only: Leave fields that have a value as they are.
            values: Values by name.

        Returns:
            What was not used: names that are not fields, and with `defaults_only` those that had a
            value.

        Raises:
            InvalidRequestError: A value breaks a rule.
        """
        names = (*FIELD_NAMES, "clear_fields")
        used = {
            name: value
            for name, value in values.items()
            if name in names and not (defaults_only and getattr(self, name) not in (None, ()))
        }
        changed = copy.copy(self)
        for name, value in used.items():
            setattr(changed, name, value)
        changed.clear_fields = [n for n in changed.clear_fields if used.get(n) is None]
        changed.validate()
        for name in (*used, "clear_fields"):
            setattr(self, name, getattr(changed, name))
        return {name: value for name, value in values.items() if name not in used}

    def validate(self) -> None:
        """Checks types, ranges and what does not go together.

        transformers' own hard errors, and the ranges it leaves to its processors. What depends on
        the model (a token id beyond the vocabulary, a length beyond its context) is the server's
        to judge.

        Raises:
            InvalidRequestError: A value breaks a rule; `field` names it. It is a `ValueError`.
        """
        self.to_message()

    def get_generation_mode(self, assistant_model: object | None = None) -> GenerationMode:
        """Which algorithm the fields ask for, by transformers' rule.

        Args:
            assistant_model: Anything but None says that there is a drafter.
        """
        return generation_mode(self, assisted=assistant_model is not None)

    def _compared(self) -> tuple[dict[str, object], frozenset[str]]:
        values = self.to_dict()
        values.pop("transformers_version", None)
        return values, frozenset(self.clear_fields)

    def _checked_clear_fields(self, values: Mapping[str, object]) -> list[str]:
        names = self.clear_fields
        if isinstance(names, str) or not all(name in FIELD_NAMES for name in names):
            raise InvalidRequestError(
                f"clear_fields: must be names of fields, got {names!r}", field="clear_fields"
            )
        both = [name for name in names if name in values]
        if both:
            raise InvalidRequestError(
                f"clear_fields: {', '.join(both)} cannot be set and cleared at once",
                field="clear_fields",
            )
        return list(names)


def as_config(config: GenerationConfig | SupportsToDict) -> GenerationConfig:
    """`config` itself, or what one of transformers' objects says.

    Raises:
        InvalidRequestError: The object holds a name that is not a field, or a value breaks a rule.
        TypeError: It is no configuration.
    """
    if isinstance(config, GenerationConfig):
        return config
    if isinstance(config, SupportsToDict) and not isinstance(config, type):
        return GenerationConfig.from_transformers(config)
    raise TypeError(
        "config must be a GenerationConfig, of this package or of transformers, "
        f"got {type(config).__name__}; GenerationConfig.from_dict takes a dict"
    )
