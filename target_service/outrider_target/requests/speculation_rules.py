"""How to speculate for a request: what it says over the model's configuration over the server's.

A value is refused with the name of its field. None of them can change the text, but for the
verification, which can change which of all possible texts it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from outrider.v1 import speculation_pb2
from outrider.v1.generation_config_pb2 import GenerationConfig
from outrider_runtime.errors import InvalidRequest, UnsupportedOption
from outrider_runtime.model.runner import LayerShapes
from outrider_runtime.prompt_lookup import LookupRule

from outrider_target.requests.field_rules import check_finite
from outrider_target.requests.request import DraftMethod, SpeculationSettings
from outrider_target.requests.sharing import NOBODY, Sharing
from outrider_target.settings import SpeculationDefaults

MAX_WINDOW = 64
MAX_FAN_OUT = 16
MAX_DRAFT_TIMEOUT_MS = 60_000


def speculation_settings(
    message: speculation_pb2.SpeculationConfig,
    config: GenerationConfig,
    defaults: SpeculationDefaults,
    layers: LayerShapes | None,
    *,
    sharing: Sharing = NOBODY,
    prediction: Sequence[int] = (),
) -> SpeculationSettings:
    """Resolve everything about speculation.

    Args:
        message: What the request says apart from GenerationConfig.
        config: The effective configuration.
        defaults: What holds where nobody says anything.
        layers: The served model's; None where they are not a plain stack.
        sharing: Among whom outputs are remembered.
        prediction: The expected text's token ids, checked already; empty without one.

    Raises:
        InvalidRequest: A value is wrong; names the field.
        UnsupportedOption: A value asks for what is not served.
    """
    check_finite(message, "speculation")
    by_ratio = _is_by_ratio(message, config)
    pacing = message.pacing
    if pacing not in speculation_pb2.DraftPacing.values():
        raise InvalidRequest("speculation.pacing", f"{pacing} is not a known pacing")
    synchronous = pacing == speculation_pb2.DRAFT_PACING_SYNCHRONOUS
    method = _draft_method(
        message, config, defaults, synchronous=synchronous, predicted=bool(prediction)
    )
    if by_ratio and method is DraftMethod.COMBINED:
        # To choose between drafts by their tokens would favour some tokens.
        method = DraftMethod.PREDICTION if prediction else DraftMethod.REMOTE
    _check_prediction(method, predicted=bool(prediction))
    if message.lookup_rule not in _LOOKUP_RULES:
        raise InvalidRequest(
            "speculation.lookup_rule", f"{message.lookup_rule} is not a known rule"
        )
    early_exit = _early_exit(config, layers)
    if method is DraftMethod.EARLY_EXIT and not early_exit:
        raise InvalidRequest(
            "generation_config.assistant_early_exit",
            "says after which layer to draft; speculation.method asks for it",
        )
    max_window = _bounded(
        message, "max_assistant_tokens", defaults.max_assistant_tokens, 1, MAX_WINDOW
    )
    timeout_ms = _bounded(
        message, "draft_timeout_ms", defaults.draft_timeout_ms, 0, MAX_DRAFT_TIMEOUT_MS
    )
    if message.HasField("draft_temperature") and message.draft_temperature <= 0:
        raise InvalidRequest(
            "speculation.draft_temperature",
            f"must be greater than 0, got {message.draft_temperature:g}",
        )
    window, schedule = defaults.num_assistant_tokens, defaults.num_assistant_tokens_schedule
    if config.HasField("num_assistant_tokens"):
        window = config.num_assistant_tokens
    if config.HasField("num_assistant_tokens_schedule"):
        schedule = config.num_assistant_tokens_schedule
    if config.HasField("prompt_lookup_num_tokens") and method is not DraftMethod.EARLY_EXIT:
        window, schedule = config.prompt_lookup_num_tokens, "constant"  # as in transformers
    run_ahead = _bounded(message, "run_ahead", defaults.run_ahead, 0, MAX_WINDOW)
    tree_rows = _bounded(message, "draft_tree_rows", defaults.draft_tree_rows, 0, MAX_WINDOW)
    fan_out = _bounded(message, "draft_fan_out", defaults.draft_fan_out, 1, MAX_FAN_OUT)
    return SpeculationSettings(
        method=method,
        synchronous=synchronous,
        window=window,
        schedule=schedule,
        max_window=max_window,
        run_ahead=0 if synchronous else run_ahead,
        fan_out=1 if synchronous or by_ratio else fan_out,
        tree_rows=tree_rows,
        confidence_threshold=config.assistant_confidence_threshold,
        timeout_seconds=timeout_ms / 1000,
        draft_temperature=message.draft_temperature
        if message.HasField("draft_temperature")
        else None,
        max_matching_ngram_size=config.max_matching_ngram_size
        if config.HasField("max_matching_ngram_size")
        else 2,
        report_rounds=message.report_rounds,
        early_exit=early_exit if method is DraftMethod.EARLY_EXIT else 0,
        forced=not _wants_plain_decoding(message),
        lookup_rule=_LOOKUP_RULES[message.lookup_rule],
        prediction=tuple(prediction),
        tenant=sharing.tenant(message.cache_salt),
        by_ratio=by_ratio,
    )


def without_drafts(settings: SpeculationSettings) -> SpeculationSettings:
    """The same for a mode in which drafts have no place."""
    return replace(settings, method=DraftMethod.NONE, early_exit=0, forced=False, by_ratio=False)


def with_guesses(settings: SpeculationSettings) -> SpeculationSettings:
    """The same for beam search: prompt lookup has a form of its own there, other drafters none."""
    lookup = settings.method in (DraftMethod.PROMPT_LOOKUP, DraftMethod.COMBINED)
    method = DraftMethod.PROMPT_LOOKUP if lookup else DraftMethod.NONE
    return replace(settings, method=method, early_exit=0, forced=False)


_METHODS = {
    speculation_pb2.DRAFT_METHOD_NONE: DraftMethod.NONE,
    speculation_pb2.DRAFT_METHOD_REMOTE: DraftMethod.REMOTE,
    speculation_pb2.DRAFT_METHOD_PROMPT_LOOKUP: DraftMethod.PROMPT_LOOKUP,
    speculation_pb2.DRAFT_METHOD_COMBINED: DraftMethod.COMBINED,
    speculation_pb2.DRAFT_METHOD_EARLY_EXIT: DraftMethod.EARLY_EXIT,
    speculation_pb2.DRAFT_METHOD_GRAMMAR: DraftMethod.GRAMMAR,
    speculation_pb2.DRAFT_METHOD_SUFFIX: DraftMethod.SUFFIX,
    speculation_pb2.DRAFT_METHOD_PREDICTION: DraftMethod.PREDICTION,
}

_LOOKUP_RULES = {
    speculation_pb2.LOOKUP_RULE_UNSPECIFIED: LookupRule.LATEST,
    speculation_pb2.LOOKUP_RULE_LATEST: LookupRule.LATEST,
    speculation_pb2.LOOKUP_RULE_FIRST: LookupRule.FIRST,
}


def _wants_plain_decoding(message: speculation_pb2.SpeculationConfig) -> bool:
    disabled = message.HasField("enabled") and not message.enabled
    return disabled or message.method == speculation_pb2.DRAFT_METHOD_NONE


def _draft_method(
    message: speculation_pb2.SpeculationConfig,
    config: GenerationConfig,
    defaults: SpeculationDefaults,
    *,
    synchronous: bool,
    predicted: bool,
) -> DraftMethod:
    unspecified = message.method == speculation_pb2.DRAFT_METHOD_UNSPECIFIED
    if not unspecified and message.method not in _METHODS:
        raise InvalidRequest("speculation.method", f"{message.method} is not a known method")
    if message.HasField("enabled") and not message.enabled:
        if not unspecified and message.method != speculation_pb2.DRAFT_METHOD_NONE:
            raise InvalidRequest(
                "speculation.method", "names a drafter although speculation.enabled is false"
            )
        return DraftMethod.NONE
    if not unspecified:
        return _METHODS[message.method]
    if config.HasField("assistant_early_exit"):
        return DraftMethod.EARLY_EXIT  # before prompt lookup, as in transformers
    if predicted:
        return DraftMethod.COMBINED
    if config.HasField("prompt_lookup_num_tokens"):
        return DraftMethod.PROMPT_LOOKUP
    assert defaults.draft_method is not None
    if defaults.draft_method is DraftMethod.COMBINED and synchronous:
        return DraftMethod.REMOTE  # rounds then follow transformers' assisted generation
    return defaults.draft_method


def _check_prediction(method: DraftMethod, *, predicted: bool) -> None:
    if method is DraftMethod.PREDICTION and not predicted:
        raise InvalidRequest(
            "speculation.prediction_text",
            "or prediction_token_ids must say what is expected; speculation.method asks for it",
        )
    using = (DraftMethod.COMBINED, DraftMethod.PREDICTION, DraftMethod.NONE)
    if predicted and method not in using:
        raise InvalidRequest(
            "speculation.method",
            f"is {method}, which uses no prediction; leave it out, or set combined or prediction",
        )


def _early_exit(config: GenerationConfig, layers: LayerShapes | None) -> int:
    """Layers to draft with; 0 when nothing is said."""
    if not config.HasField("assistant_early_exit"):
        return 0
    field, count = "generation_config.assistant_early_exit", config.assistant_early_exit
    if layers is None:
        raise UnsupportedOption(
            field, "this model's layers are no plain stack that could be left early"
        )
    if not 1 <= count < layers.num_layers:
        raise InvalidRequest(
            field,
            f"must lie in [1, {layers.num_layers - 1}]: the model has {layers.num_layers} layers, "
            f"got {count}",
        )
    return count


def _is_by_ratio(message: speculation_pb2.SpeculationConfig, config: GenerationConfig) -> bool:
    """Whether drafts are accepted by ratio: where nothing is sampled that is agreement."""
    if message.verification not in speculation_pb2.Verification.values():
        raise InvalidRequest(
            "speculation.verification", f"{message.verification} is not a known verification"
        )
    wanted = message.verification == speculation_pb2.VERIFICATION_SPECULATIVE_SAMPLING
    return wanted and config.do_sample


def _bounded(
    message: speculation_pb2.SpeculationConfig, name: str, default: int, low: int, high: int
) -> int:
    if not message.HasField(name):  # type: ignore[arg-type]  # any field name
        return default
    value: int = getattr(message, name)
    if not low <= value <= high:
        raise InvalidRequest(f"speculation.{name}", f"must lie in [{low}, {high}], got {value}")
    return value
