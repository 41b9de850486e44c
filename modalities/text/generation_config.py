"""generation_config.json: what a checkpoint says about continuing text, read and written as transformers does."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalities.text.sampling import Sampling
from modalities.text.tokenizer_files import GENERATION, read_json

TOP_K = 50  # what transformers takes where it samples and the file says nothing

# Fields that change another output than the one we make, or none at all, at any value.
HARMLESS = {
    "transformers_version", "_from_model_config", "_commit_hash", "bos_token_id", "pad_token_id",
    "decoder_start_token_id", "max_length", "max_time", "use_cache", "cache_implementation", "cache_config",
    "max_cache_len", "return_legacy_cache", "output_attentions", "output_hidden_states", "output_scores",
    "output_logits", "return_dict_in_generate", "early_stopping", "length_penalty", "diversity_penalty", "low_memory",
    "num_return_sequences", "renormalize_logits", "remove_invalid_values", "prefill_chunk_size", "compile_config",
    "disable_compile", "continuous_batching_config", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "use_mtp",
    "trust_remote_code", "assistant_ensemble_weight", "speculation_type",
}  # fmt: skip

# Fields that change the text and are not offered here, with the values at which they do nothing.
IDLE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "no_repeat_ngram_size": (0,), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0), "typical_p": (1, 1.0), "epsilon_cutoff": (0, 0.0), "eta_cutoff": (0, 0.0),
    "top_h": (), "penalty_alpha": (0, 0.0), "dola_layers": (), "min_length": (0,), "min_new_tokens": (0,),
    "guidance_scale": (1, 1.0), "token_healing": (False,), "bad_words_ids": ([],), "force_words_ids": ([],),
    "constraints": ([],), "sequence_bias": ({}, []), "suppress_tokens": ([],), "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": (),
    "watermarking_config": (), "forced_decoder_ids": ([],),
}  # fmt: skip
READ = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop_strings",
    "eos_token_id",
}  # fmt: skip


def read(folder: Path) -> Sampling | None:
    """The settings of a folder, None where it has no such file.

    As in transformers, text is sampled only where `do_sample` is true, then with a top_k of 50 where the file names
    none; otherwise the likeliest id is taken. Where it names no `max_new_tokens`, 256 (transformers: 20 ids in all).
    HARMLESS fields are not looked at; others that would change the text, and unknown ones, are a warning that names
    them. Raises ValueError naming file and field where a value cannot be used.
    """
    path = folder / GENERATION
    if not path.is_file():
        return None
    fields = {name: value for name, value in read_json(path).items() if value is not None}
    _warn(path, fields)
    try:
        return _sampling(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    samples = bool(fields.get("do_sample", False))
    top_k = fields.get("top_k", TOP_K if samples else None)
    keys = ("top_p", "min_p", "repetition_penalty", "max_new_tokens")
    return Sampling(
        temperature=float(fields.get("temperature", 1.0)) if samples else 0.0,
        top_k=top_k or None,
        stop=fields.get("stop_strings", ()),
        eos=fields.get("eos_token_id"),
        **{key: fields[key] for key in keys if key in fields},
    )


def _warn(path: Path, fields: Mapping[str, Any]) -> None:
    lost = [f"{name}={fields[name]!r}" for name in sorted(fields) if name in IDLE and fields[name] not in IDLE[name]]
    unknown = sorted(fields.keys() - HARMLESS - IDLE.keys() - READ)
    if lost:
        warnings.warn(f"{path}: not offered here and left out: {', '.join(lost)}", stacklevel=4)
    if unknown:
        warnings.warn(f"{path}: unknown fields left out: {', '.join(unknown)}", stacklevel=4)


def write(folder: Path, sampling: Sampling, ids: Mapping[str, Any]) -> Path:
    """Writes the settings; `ids` are eos_token_id and pad_token_id of the tokenizer.

    Read again they are equal, but for a temperature of 0, where what only a draw would read is left out.
    """
    content = {key: value for key, value in ids.items() if value not in (None, [])}
    content |= {"do_sample": sampling.temperature > 0, "max_new_tokens": sampling.max_new_tokens}
    if sampling.temperature > 0:
        content |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
        content |= {key: getattr(sampling, key) for key in ("top_p", "min_p") if getattr(sampling, key) is not None}
    if sampling.repetition_penalty != 1:
        content["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        content["stop_strings"] = list(sampling.stop)
    if sampling.eos is not None:
        content["eos_token_id"] = list(sampling.eos)
    path = folder / GENERATION
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
