"""Code and a seed -> a whole checkpoint folder, that plain transformers loads like any downloaded one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipModel,
)

from mlb_batch.tiny import architectures
from mlb_batch.tiny.tokenizer import image_tokenizer, paired_tokenizer, video_tokenizer

_RANDOM_CARD = """# {name}

Random weights (seed {seed}) in the architecture of {kind}. It proves plumbing; it has learned nothing.
"""


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    if name == "tiny":
        return video_tokenizer()
    return image_tokenizer() if name == "tiny-image" else paired_tokenizer(architectures.PAIRED_TEXT_TOKENS)


def make_model(name: str, seed: int) -> PreTrainedModel:
    """The untrained model; the caller's random state is left as it was."""
    tokenizer = make_tokenizer(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "tiny":
            return LlavaOnevisionForConditionalGeneration(architectures.video_config(tokenizer))
        if name == "tiny-image":
            return LlavaNextForConditionalGeneration(architectures.image_config(tokenizer))
        return SiglipModel(architectures.paired_config(tokenizer))


def build(name: str, folder: Path, seed: int) -> None:
    """A folder with random weights."""
    model = make_model(name, seed)
    save(name, model, folder, _RANDOM_CARD.format(name=name, seed=seed, kind=type(model).__name__))


def save(name: str, model: PreTrainedModel, folder: Path, card: str) -> None:
    """Weights are stored in half precision and loaded as float32 (config.json says so): every reader sees the same."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(name)
    tokenizer.save_pretrained(folder)
    for file, content in architectures.processor_files(name).items():
        _write_json(folder / file, content)
    tied = {"lm_head.weight"}  # the same matrix as the embedding: from_pretrained ties it again
    half = {key: value.to(torch.float16) for key, value in model.state_dict().items() if key not in tied}
    model.save_pretrained(folder, state_dict=half)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    for part in ("text_config", "vision_config"):
        config[part]["dtype"] = "float32"
    _write_json(folder / "config.json", config)
    if name != "tiny-paired":
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        GenerationConfig(do_sample=False, bos_token_id=tokenizer.bos_token_id, **ends).save_pretrained(folder)
    (folder / "README.md").write_text(card)
    for written in folder.iterdir():
        written.chmod(0o644)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
