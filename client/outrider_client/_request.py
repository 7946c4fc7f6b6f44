"""From a caller's arguments to a request message, with a clear error for each bad one.

Checks what cannot be put into the message at all; what depends on the model is the server's to
judge. Knows nothing of calls.
"""

from __future__ import annotations

import operator
import uuid
from collections.abc import Iterable, Sequence

from outrider.v1 import generation_pb2
from outrider_contract.json_values import MAX_UINT32, MAX_UINT64
from outrider_contract.metadata import MAX_REQUEST_ID_LENGTH, is_request_id

from outrider_client._errors import InvalidRequestError
from outrider_client._generation_config import GenerationConfig, as_config
from outrider_client._generation_json import SupportsToDict
from outrider_client._plugins import Plugin, plugin_calls
from outrider_client._speculation_config import SpeculationConfig
from outrider_client._structured_output import StructuredOutput

Prompt = str | Sequence[int]
Config = GenerationConfig | SupportsToDict


def generate_request(
    prompt: Prompt,
    config: Config | None,
    *,
    seed: int | None,
    speculation: SpeculationConfig | None,
    structured_output: StructuredOutput | None,
    skip_special_tokens: bool | None,
    log_probs: int | None,
    logits_processors: Sequence[Plugin | str],
    stopping_criteria: Sequence[Plugin | str],
    negative_prompt: Prompt | None,
    beam_progress_interval: int | None = None,
) -> generation_pb2.GenerateRequest:
    """The request for one prompt; its id is set for each try.

    Raises:
        InvalidRequestError: An argument has a value that cannot be sent.
        TypeError: An argument is of the wrong type altogether.
    """
    request = generation_pb2.GenerateRequest(skip_special_tokens=skip_special_tokens)
    if isinstance(prompt, str):
        request.text = utf8("prompt", prompt)
    else:
        request.token_ids.ids.extend(token_ids("prompt", prompt))
        request.token_ids.SetInParent()  # an empty list is still the chosen form
    if isinstance(negative_prompt, str):
        request.negative_text = utf8("negative_prompt", negative_prompt)
    elif negative_prompt is not None:
        request.negative_token_ids.ids.extend(token_ids("negative_prompt", negative_prompt))
        request.negative_token_ids.SetInParent()
    if config is not None:
        request.generation_config.CopyFrom(as_config(config).to_message())
    if speculation is not None:
        if not isinstance(speculation, SpeculationConfig):
            raise TypeError(
                f"speculation must be a SpeculationConfig, got {type(speculation).__name__}"
            )
        request.speculation.CopyFrom(speculation.to_message())
    if structured_output is not None:
        if not isinstance(structured_output, StructuredOutput):
            raise TypeError(
                "structured_output must be a StructuredOutput, got "
                f"{type(structured_output).__name__}"
            )
        request.structured_output.CopyFrom(structured_output.to_message())
    if seed is not None:
        request.seed = _seed(seed)
    if log_probs is not None:
        request.log_probs.num_top = _uint32("log_probs", log_probs)
        request.log_probs.SetInParent()  # 0 asks for the tokens' own
    if beam_progress_interval is not None:
        request.beam_progress_interval = _uint32("beam_progress_interval", beam_progress_interval)
    request.logits_processors.extend(plugin_calls("logits_processors", logits_processors))
    request.stopping_criteria.extend(plugin_calls("stopping_criteria", stopping_criteria))
    return request


def score_request(
    sequence: Prompt,
    config: Config | None,
    *,
    first_position: int | None,
    log_probs: int,
    request_id: str,
) -> generation_pb2.ScoreRequest:
    """The request to score a text.

    Raises:
        InvalidRequestError: An argument has a value that cannot be sent.
        TypeError: An argument is of the wrong type altogether.
    """
    request = generation_pb2.ScoreRequest(request_id=check_request_id(request_id))
    if isinstance(sequence, str):
        request.text = utf8("sequence", sequence)
    else:
        request.token_ids.ids.extend(token_ids("sequence", sequence))
        request.token_ids.SetInParent()
    if config is not None:
        request.generation_config.CopyFrom(as_config(config).to_message())
    if first_position is not None:
        request.first_position = _uint32("first_position", first_position)
    request.log_probs.num_top = _uint32("log_probs", log_probs)
    return request


def token_ids(field: str, values: Iterable[int]) -> list[int]:
    """`values` as a list of ints that fit the wire.

    Anything iterable whose items are integers will do, so arrays and tensors of one dimension
    pass without their library being known here.

    Raises:
        InvalidRequestError: An id is negative or too large.
        TypeError: `values` is not iterable, or an item is not an integer.
    """
    if isinstance(values, bytes | bytearray | memoryview):
        raise TypeError(f"{field} must be text or token ids, got {type(values).__name__}")
    try:
        ids = [operator.index(value) for value in values]
    except TypeError:
        raise TypeError(f"{field} must be text or a flat sequence of token ids") from None
    for position, value in enumerate(ids):
        if not 0 <= value <= MAX_UINT32:
            raise InvalidRequestError(
                f"{field}[{position}]: must be in [0, {MAX_UINT32}], got {value}", field=field
            )
    return ids


def utf8(field: str, text: str) -> str:
    """`text` if it can be encoded.

    Raises:
        InvalidRequestError: It holds lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{field}: is not valid Unicode at character {error.start}", field=field
        ) from None
    return text


def request_ids(values: str | Iterable[str]) -> list[str]:
    """The ids to abort.

    Raises:
        InvalidRequestError: One cannot be a request id.
    """
    return [check_request_id(value) for value in ([values] if isinstance(values, str) else values)]


def check_request_id(request_id: str) -> str:
    """`request_id` if it is one: 1 to 128 printable ASCII characters.

    Raises:
        InvalidRequestError: It is not.
    """
    if not isinstance(request_id, str) or not is_request_id(request_id):
        raise InvalidRequestError(
            f"request_id: must be 1 to {MAX_REQUEST_ID_LENGTH} printable ASCII characters, "
            f"got {request_id!r:.60}",
            field="request_id",
        )
    return request_id


def new_request_id() -> str:
    """A fresh request id."""
    return uuid.uuid4().hex


def _uint32(field: str, given: int) -> int:
    value = operator.index(given)
    if not 0 <= value <= MAX_UINT32:
        raise InvalidRequestError(
            f"{field}: must be in [0, {MAX_UINT32}], got {value}", field=field
        )
    return value


def _seed(seed: int) -> int:
    value = operator.index(seed)
    if not 0 <= value <= MAX_UINT64:
        raise InvalidRequestError(f"seed: must be in [0, 2**64), got {value}", field="seed")
    return value
