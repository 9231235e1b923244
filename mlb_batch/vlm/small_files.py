"""What transformers makes of a checkpoint's small files, which leave out what their class has by default; or one line
on what it says of damaged ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from mlb_batch.errors import ModelError
from mlb_batch.storage_errors import first_line, one_line
from mlb_batch.vlm.checkpoint import Checkpoint, read_json

_T = TypeVar("_T")

# What changes greedy tokens in transformers and is not applied here, with the value at which it does nothing.
_NOT_APPLIED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "num_beams": 1,
    "guidance_scale": 1.0,
    "stop_strings": None,
    "watermarking_config": None,
    "dola_layers": None,
}
# The same of sampled tokens, which are drawn here from all words at the job's own temperature.
_NOT_APPLIED_SAMPLING = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
}


def tokenizer_of(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    for path in checkpoint.folder.glob("tokenizer*.json"):
        read_json(path)

    def loaded() -> PreTrainedTokenizerBase:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=False, local_files_only=True
        )
        return found

    return _or_refused(checkpoint, "its tokenizer can't be loaded", "copy the checkpoint again", loaded)


def refuse_window(checkpoint: Checkpoint) -> None:
    """A Mistral config that says nothing has a sliding window, for instance. Llama's classes know none."""
    config = _config(checkpoint).get_text_config()
    window = getattr(config, "sliding_window", None)
    kind = config.model_type
    slides = kind == "mistral" or (kind == "qwen2" and "sliding_attention" in config.layer_types)
    if window and slides and window < checkpoint.shape.decoder.context:
        raise ModelError(
            f"{checkpoint.name}: its language model attends in a sliding window of {window}; "
            "packed prefill is exact for full attention only, use a checkpoint without a window"
        )


def generation_config(checkpoint: Checkpoint) -> Any:
    """As `generate` takes it: from its own file, or where there is none from config.json."""
    path = checkpoint.folder / "generation_config.json"
    try:
        found = (
            GenerationConfig.from_dict(read_json(path))
            if path.is_file()
            else GenerationConfig.from_model_config(_config(checkpoint))
        )
    except ValueError as error:
        said = f"generation_config.json can't be read ({first_line(error)}); mend or remove it"
        raise ModelError(f"{checkpoint.name}: {said}") from error
    stop = found.eos_token_id
    if not all(isinstance(token, int) for token in (stop if isinstance(stop, list) else [stop or 0])):
        raise ModelError(f"{checkpoint.name}: eos_token_id is {stop!r}, and must be a token's number or a list of some")
    return found


def not_applied(checkpoint: Checkpoint, temperature: float = 0.0) -> Iterator[str]:
    """What generation_config.json asks for beyond this project's greedy and sampled tokens."""
    config = generation_config(checkpoint)
    for name, nothing in (_NOT_APPLIED | (_NOT_APPLIED_SAMPLING if temperature else {})).items():
        value = getattr(config, name, None)
        if value is not None and value != nothing and (value or nothing is not None):  # an empty list does nothing
            yield f"{name}: {value}"


def _config(checkpoint: Checkpoint) -> Any:
    def loaded() -> Any:
        return AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)

    return _or_refused(checkpoint, "transformers refuses its config.json", "mend it", loaded)


def _or_refused(checkpoint: Checkpoint, problem: str, remedy: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except Exception as error:  # its checks have errors of their own, and its parsers raise bare ones too
        raise ModelError(f"{checkpoint.name}: {problem} ({one_line(error)}); {remedy}") from error
