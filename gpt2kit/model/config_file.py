"""`config.json` <-> GPT2Config. It comes from strangers: data, checked key by key, never an import."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2kit.commit import write_json
from gpt2kit.errors import UserError, closest
from gpt2kit.model.config import ACTIVATION_NAMES, GPT2Config

if TYPE_CHECKING:
    from gpt2kit.text.tokenizer import Tokenizer

ALIASES = {  # transformers reads the names on the left as those on the right
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range")
SWITCHES = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
CLASSIFIER = "GPT2ForSequenceClassification"
ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", CLASSIFIER)
PROBLEMS = ("single_label_classification", "multi_label_classification")
MOST_LABELS = 100_000
REFUSED = (
    "add_cross_attention",
    "is_encoder_decoder",
    "quantization_config",
    "pruned_heads",
)  # when set at all
CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
HARMLESS = {  # say nothing about the arithmetic of a language model
    *("model_type", "architectures", "n_ctx", "reorder_and_upcast_attn", "use_cache", "torch_dtype", "dtype"),
    *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "gradient_checkpointing"),
    *(
        "task_specific_params",
        "output_past",
        "tokenizer_class",
        "is_decoder",
        "output_attentions",
        "problem_type",
    ),
    *(
        "output_hidden_states",
        "return_dict",
        "id2label",
        "label2id",
        "num_labels",
        "finetuning_task",
        "torchscript",
    ),
    *(
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    ),
    *(
        "_attn_implementation",
        "attn_implementation",
        "_attn_implementation_autoset",
        "use_bfloat16",
        "n_special",
    ),
    *(
        "predict_special_tokens",
        "chunk_size_feed_forward",
        "sep_token_id",
        "decoder_start_token_id",
        "prefix",
    ),
}
LARGEST = 2**31 - 1
GPT2_EOT = 50256  # what transformers takes for the end token where config.json says nothing


def read_config(values: object, tokenizer: Tokenizer | None = None) -> tuple[GPT2Config, list[str]]:
    """The content of a `config.json` -> the config, and notes for the user on what was repaired or ignored.

    `tokenizer` repairs end and start tokens that lie outside the vocabulary; without one they are dropped.
    Raises UserError naming the key that is wrong, or that asks for something GPT-2 does not have.
    """
    if not isinstance(values, dict):
        raise UserError(f"config.json holds {_show(values)}, not an object with keys")
    notes: list[str] = []
    _check_architecture(values, notes)
    values = _resolve_names(values, notes)
    fields: dict[str, Any] = {}
    for name in SIZES:
        if name in values and not (name == "n_inner" and values[name] is None):
            fields[name] = _whole(name, values[name])
    for name in RATES:
        if name in values:
            fields[name] = _number(name, values[name])
    for name in SWITCHES:
        if name in values:
            fields[name] = _switch(name, values[name])
    if "activation_function" in values:
        fields["activation_function"] = _activation(values["activation_function"])
    vocab_size = fields.get("vocab_size", GPT2Config.vocab_size)
    for name in TOKENS:
        fields[name] = _token(name, values, vocab_size, tokenizer, notes)
    if CLASSIFIER in (values.get("architectures") or []):
        fields["labels"], fields["multi_label"] = _labels(values), values.get("problem_type") == PROBLEMS[1]
    try:
        return GPT2Config(**fields), notes
    except UserError as error:
        raise UserError(f"config.json: {error.message}", hint=error.hint) from None


def _check_architecture(values: dict[str, Any], notes: list[str]) -> None:
    kind = values.get("model_type")
    if kind is None:
        notes.append("config.json has no model_type: taken for gpt2")
    elif kind != "gpt2":
        raise UserError(f"config.json: model_type is {_show(kind)}, only 'gpt2' is read")
    architectures = values.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise UserError(f"config.json: architectures must be a list of names, got {_show(architectures)}")
    for name in architectures or []:
        if name not in ARCHITECTURES:
            raise UserError(f"config.json: architectures has {_show(name)}, known are {', '.join(ARCHITECTURES)}")
    for name in REFUSED:
        if values.get(name):
            raise UserError(f"config.json: {name} is {_show(values[name])}, a GPT-2 here has none")
    if "reorder_and_upcast_attn" in values:
        _switch("reorder_and_upcast_attn", values["reorder_and_upcast_attn"])  # attention runs in float32 anyway


def _resolve_names(values: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Aliases by their names, n_ctx where n_positions is absent; notes on the keys that are not read."""
    values = dict(values)
    for alias, name in ALIASES.items():
        if alias in values:
            value = values.pop(alias)
            if values.setdefault(name, value) != value:
                raise UserError(f"config.json: {alias} is {_show(value)}, but {name} is {_show(values[name])}")
    if values.get("n_ctx") is not None:
        n_ctx = _whole("n_ctx", values["n_ctx"])
        if values.setdefault("n_positions", n_ctx) != n_ctx:
            notes.append(f"config.json: n_ctx {n_ctx} is ignored, n_positions is {_show(values['n_positions'])}")
    code = sorted(name for name in CODE if values.get(name))
    if code:
        notes.append(f"config.json: {', '.join(code)} ignored: no code that comes with a model is ever run")
    known = {field.name for field in dataclasses.fields(GPT2Config)} - {"labels", "multi_label"}
    for name in sorted(set(values) - known - HARMLESS - set(REFUSED) - set(CODE)):
        near = closest(name, known)
        notes.append(f"config.json: unknown key {_show(name)} ignored" + (f"; did you mean {near!r}?" if near else ""))
    return values


def _show(value: object) -> str:
    """A value for a message: one line, not longer than a screen's width."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _whole(name: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= LARGEST:
        raise UserError(f"config.json: {name} must be a whole number from 1 to {LARGEST}, got {_show(value)}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6:
        return float(value)  # an int of 400 digits would not fit; NaN fails the comparison
    raise UserError(f"config.json: {name} must be a number, got {_show(value)}")


def _switch(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise UserError(f"config.json: {name} must be true or false, got {_show(value)}")


def _activation(value: object) -> str:
    if isinstance(value, str) and value in ACTIVATION_NAMES:
        return value
    raise UserError(
        f"config.json: unknown activation_function {_show(value)}",
        hint=f"known: {', '.join(sorted(ACTIVATION_NAMES))}",
    )


def _labels(values: dict[str, Any]) -> tuple[str, ...]:
    """The classes' names from id2label; transformers has two, LABEL_0 and LABEL_1, where nothing is said."""
    if values.get("problem_type") not in (None, *PROBLEMS):
        raise UserError(
            f"config.json: problem_type is {_show(values['problem_type'])}, known are {', '.join(PROBLEMS)}"
        )
    names = values.get("id2label")
    if names is None:
        count = _whole("num_labels", values.get("num_labels", 2))
        if count > MOST_LABELS:
            raise UserError(f"config.json: num_labels is {count}, at most {MOST_LABELS} are read")
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise UserError(f'config.json: id2label must map "0", "1", ... to names, got {_show(names)}')
    return tuple(names[str(i)] for i in range(len(names)))


def _token(
    name: str, values: dict[str, Any], vocab_size: int, tokenizer: Tokenizer | None, notes: list[str]
) -> int | None:
    """A special token's id inside the vocabulary, or None. UER's Chinese GPT-2s say 50256 of 21128."""
    from gpt2kit.text.tokenizer import repair_eos

    substitute = _substitute(name, tokenizer, vocab_size)
    if name not in values:
        if name == "pad_token_id":
            return None
        return GPT2_EOT if vocab_size == GPT2_EOT + 1 and tokenizer is None else substitute
    value = values[name]
    if isinstance(value, list) and value and name == "eos_token_id":
        value = value[0]
        notes.append(f"config.json: {name} is a list, the first token of it is used: {_show(value)}")
    if value is None:
        return None
    if type(value) is not int:
        raise UserError(f"config.json: {name} must be a token id or null, got {_show(value)}")
    if tokenizer is not None and substitute is not None and name == "eos_token_id":
        value, note = repair_eos(value, tokenizer)
        notes += [] if note is None else [note]
        return value
    if 0 <= value < vocab_size:
        return value
    repair = "dropped" if substitute is None else f"replaced by {substitute}, the tokenizer's own"
    notes.append(f"config.json: {name} {_show(value)} is outside the vocabulary of {vocab_size} tokens: {repair}")
    return substitute


def _substitute(name: str, tokenizer: Tokenizer | None, vocab_size: int) -> int | None:
    if tokenizer is None:
        return None
    special = tokenizer.special_tokens
    found = {
        "eos_token_id": tokenizer.eot_id,
        "bos_token_id": special.get("[CLS]", tokenizer.eot_id),
        "pad_token_id": special.get("[PAD]"),
    }[name]
    return found if found is not None and found < vocab_size else None


def config_values(config: GPT2Config, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The content of a `config.json` that transformers, llama.cpp's converter and CTranslate2 read.

    End and start tokens that the config leaves open are the tokenizer's.
    """
    values = dataclasses.asdict(config)
    for name in ("bos_token_id", "eos_token_id"):
        if values[name] is None:
            values[name] = _substitute(name, tokenizer, config.vocab_size)
    values |= {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_ctx": config.n_positions,
        "dtype": "float32",
        "torch_dtype": "float32",  # the same for transformers before version 5
        "add_cross_attention": False,
        "reorder_and_upcast_attn": False,
        "use_cache": True,
    }
    labels, multi_label = values.pop("labels"), values.pop("multi_label")
    if labels:
        values |= {
            "architectures": [CLASSIFIER],
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
            "problem_type": PROBLEMS[multi_label],
        }
    assert all(math.isfinite(values[name]) for name in RATES)
    return dict(sorted(values.items()))


def write_config(path: Path, config: GPT2Config, tokenizer: Tokenizer | None = None) -> None:
    """Write `config.json` (see `config_values`)."""
    write_json(path, config_values(config, tokenizer))
