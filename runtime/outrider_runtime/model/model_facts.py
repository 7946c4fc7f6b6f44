"""What a model of transformers can take: ids it accepts, ids it scores, positions, windows.

The one place that knows by which names configs tell these things. Each is asked for with a default:
a config has only what its architecture knows of.
"""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

UNLIMITED = 1 << 30
"""Position limit of models that state none (ALiBi, some rotary models)."""


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Returns the config of the language model, which multimodal models nest."""
    return config.get_text_config(decoder=True)


def num_input_ids(model: PreTrainedModel) -> int:
    """Returns how many token ids the input embedding knows."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def num_output_ids(model: PreTrainedModel) -> int:
    """Returns how many token ids the output head scores: the width of the logits.

    May exceed the tokenizer's vocabulary, because embeddings are padded.
    """
    rows: int = model.get_output_embeddings().weight.shape[0]
    return rows


def ties_embeddings(model: PreTrainedModel) -> bool:
    """Returns whether the output head is the input embedding."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def num_attention_heads(config: PretrainedConfig) -> int:
    """Returns the query heads of a layer; 0 where the config names none."""
    return int(getattr(text_config(config), "num_attention_heads", None) or 0)


def num_key_value_heads(config: PretrainedConfig) -> int:
    """Returns the key heads of a layer: the query heads where they are not grouped."""
    grouped = getattr(text_config(config), "num_key_value_heads", None)
    return int(grouped or num_attention_heads(config))


def max_model_len(config: PretrainedConfig) -> int:
    """Returns the positions the model was made for (`max_position_embeddings` by any name)."""
    limit = getattr(text_config(config), "max_position_embeddings", None)
    return int(limit) if limit is not None and limit > 0 else UNLIMITED


def layer_types(config: PretrainedConfig) -> frozenset[str]:
    """Returns the kinds of layers the config names; empty where it names none."""
    return frozenset(getattr(text_config(config), "layer_types", None) or ())


def windows(config: PretrainedConfig) -> frozenset[int | None]:
    """Returns the sliding windows that attention has to apply; None stands for full attention."""
    text = text_config(config)
    window = getattr(text, "sliding_window", None)
    types = layer_types(config)
    if types:
        wanted = {"sliding_attention": window, "full_attention": None}
        return frozenset(wanted[kind] for kind in types if kind in wanted)
    return frozenset({window if getattr(text, "use_sliding_window", True) else None})


def rope_types(config: PretrainedConfig) -> frozenset[str]:
    """Returns the rotary variants in use, also where they are nested per layer type."""
    text = text_config(config)
    found: set[str] = set()

    def collect(parameters: object) -> None:
        if not isinstance(parameters, dict):
            return
        for key, value in parameters.items():
            if key in ("rope_type", "type") and isinstance(value, str):
                found.add(value)
            collect(value)

    for attribute in ("rope_parameters", "rope_scaling"):
        collect(getattr(text, attribute, None))
    return frozenset(found)
