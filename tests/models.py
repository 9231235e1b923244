"""Tiny random checkpoints of the real architectures, in fp32, saved to folders as a download would look.

Weights are drawn so that attention is peaked and logits are far apart: the usual tiny initialisation attends almost
evenly, and every comparison of selections would be one of near-ties.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
)

from mlb_batch.vlm.checkpoint import Checkpoint, resolve

PATCH = 4
HEAD = 8
PAIR_TEXT_TOKENS = 16
_ROOT = tempfile.TemporaryDirectory(prefix="mlb-batch-test-models-")  # removed when the test process ends
_CORPUS = ["What happens in the video? A man is walking.", "Answer with the option's letter. A. B. C. D.", "USER"] * 4


@dataclass(frozen=True)
class Spec:
    """One random checkpoint."""

    family: str = "llava_onevision"
    text: str = "qwen2"
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    tied: bool = False
    side: int = 5  # patches along an edge: 25 tokens of an image frame, 3 x 3 of a pooled video frame
    context: int = 4096
    seed: int = 0

    @property
    def image_px(self) -> int:
        return self.side * PATCH

    @property
    def tokens_per_frame(self) -> int:
        return math.ceil(self.side / 2) ** 2 if self.family == "llava_onevision" else self.side**2


ONEVISION = Spec()
NEXT = Spec("llava_next", "mistral", layers=5)
LLAVA = Spec("llava", "llama", kv_heads=4, tied=True)
FAMILIES = {"onevision": ONEVISION, "next": NEXT, "llava": LLAVA}
DEEP = Spec(layers=12, heads=2, kv_heads=1, tied=True, side=4)

CONTROLS = {
    "llava_onevision": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"],
    "llava_next": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
    "llava": ["<unk>", "<s>", "</s>", "<image>", "<pad>"],
}
_PARTS = (
    "{%% for part in message['content'] if part['type'] == '%s' %%}<%s>\n{%% endfor %%}"
    "{%% for part in message['content'] if part['type'] == 'text' %%}{{ part['text'] }}{%% endfor %%}"
)
# One in each published manner: control tokens around a turn; plain words and a <s> that the tokenizer adds; and a
# template that writes the opening token itself.
_TEMPLATES = {
    "llava_onevision": "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    + _PARTS % ("video", "video")
    + "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llava": "{% for message in messages %}{{ message['role'] | upper }}: "
    + _PARTS % ("image", "image")
    + " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "llava_next": "{{ bos_token }}{% for message in messages %}[INST] "
    + _PARTS % ("image", "image")
    + " [/INST]{% endfor %}",
}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from a few sentences; image families open a text with <s> by themselves."""
    controls = CONTROLS[family]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in controls])
    video = family == "llava_onevision"
    if not video:
        opening = ("<s>", backend.token_to_id("<s>"))
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[opening])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=None if video else "<s>",
        eos_token="<|im_end|>" if video else "</s>",
        pad_token="<|endoftext|>" if video else "<pad>",
    )
    tokenizer.chat_template = _TEMPLATES[family]
    return tokenizer


def _text_config(spec: Spec, vocab: int) -> Any:
    kinds = {"qwen2": Qwen2Config, "llama": LlamaConfig, "mistral": MistralConfig}
    more = {"sliding_window": None} if spec.text == "mistral" else {}
    return kinds[spec.text](
        vocab_size=vocab, hidden_size=spec.heads * HEAD, intermediate_size=48, num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads, max_position_embeddings=spec.context,
        tie_word_embeddings=spec.tied, bos_token_id=None, eos_token_id=None, pad_token_id=None, **more,
    )  # fmt: skip


def _model(spec: Spec, tokenizer: PreTrainedTokenizerFast) -> Any:
    text = _text_config(spec, len(tokenizer))
    width = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3,
                 image_size=spec.image_px, patch_size=PATCH)  # fmt: skip
    ids = {f"{kind}_token_index": tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}
    if spec.family == "llava_onevision":
        vision = SiglipVisionConfig(**width, vision_use_head=False)
        return LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(vision_config=vision, text_config=text, tie_word_embeddings=spec.tied, **ids)
        )
    vision = CLIPVisionConfig(**width, projection_dim=16)
    more = dict(vision_config=vision, text_config=text, tie_word_embeddings=spec.tied,
                image_token_index=ids["image_token_index"], image_seq_length=spec.side**2)  # fmt: skip
    if spec.family == "llava":
        return LlavaForConditionalGeneration(LlavaConfig(**more))
    pinpoints = [[2 * spec.image_px, spec.image_px], [spec.image_px, 2 * spec.image_px]]
    return LlavaNextForConditionalGeneration(LlavaNextConfig(**more, image_grid_pinpoints=pinpoints))


def _draw_weights(model: Any, seed: int, tied: bool = False) -> None:
    """Peaked attention, residual streams that every layer changes, logits far apart; norms keep their ones.

    A tied embedding is small: a large one would answer with its own last token for ever.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            if "norm" not in name:
                weight.data.normal_(0, 0.3, generator=generator)
            continue
        gain = 1.5 if "q_proj" in name or "k_proj" in name else 0.3 if tied and "embed_tokens" in name else 1.0
        fan_in = 1 if "embed" in name else weight[0].numel()
        weight.data.normal_(0, gain / math.sqrt(fan_in), generator=generator)


def processor_config(family: str, px: int) -> dict[str, Any]:
    """preprocessor_config.json as the published checkpoints of the family have it, at a smaller size."""
    clip = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    common = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
              "rescale_factor": 1 / 255}  # fmt: skip
    if family == "llava_onevision":
        return {**common, **half, "size": {"height": px, "width": px}, "do_pad": True,
                "image_processor_type": "LlavaOnevisionImageProcessor"}  # fmt: skip
    kind = "CLIPImageProcessor" if family == "llava" else "LlavaNextImageProcessor"
    return {**common, **clip, "size": {"shortest_edge": px}, "crop_size": {"height": px, "width": px},
            "do_center_crop": True, "image_processor_type": kind}  # fmt: skip


@cache
def folder(spec: Spec) -> Path:
    """The checkpoint, built once a test process."""
    target = Path(tempfile.mkdtemp(prefix=f"{spec.family}-", dir=_ROOT.name))
    tokenizer = make_tokenizer(spec.family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = _model(spec, tokenizer)
    _draw_weights(model, spec.seed, spec.tied)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(processor_config(spec.family, spec.image_px)))
    return target


@cache
def pair_folder(px: int = 20, seed: int = 3) -> Path:
    """A SigLIP text/vision pair."""
    target = Path(tempfile.mkdtemp(prefix="siglip-", dir=_ROOT.name))
    tokenizer = make_tokenizer("llava_onevision")
    small = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    text = dict(small, vocab_size=len(tokenizer), max_position_embeddings=PAIR_TEXT_TOKENS, projection_size=24,
                pad_token_id=tokenizer.pad_token_id, bos_token_id=None, eos_token_id=None)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=dict(small, image_size=px, patch_size=PATCH)))
    _draw_weights(model, seed)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    config = {**processor_config("llava_onevision", px), "image_processor_type": "SiglipImageProcessor"}
    (target / "preprocessor_config.json").write_text(json.dumps(config))
    return target


@cache
def checkpoint(spec: Spec) -> Checkpoint:
    return resolve(str(folder(spec)))


@cache
def pair_checkpoint() -> Checkpoint:
    return pair_at(pair_folder())


def pair_at(place: Path) -> Checkpoint:
    return resolve(str(place), key="prune.feature_model")


@cache
def eager(spec: Spec) -> Any:
    """The same weights in transformers' own hands, with the attention that writes its matrix out."""
    model = AutoModelForImageTextToText.from_pretrained(folder(spec), dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def pixels(spec: Spec, frames: int, seed: int) -> np.ndarray:
    """Frames of a scene that changes bit by bit, and now and then at once: neighbours are like and unlike."""
    rng = np.random.default_rng(seed)
    shape = (spec.image_px, spec.image_px, 3)
    scene, out = rng.integers(0, 256, shape), []
    for _ in range(frames):
        change = rng.random(shape[:2]) < (0.9 if rng.random() < 0.3 else 0.1)
        scene = np.where(change[..., None], rng.integers(0, 256, shape), scene)
        out.append(scene.astype(np.uint8))
    return np.stack(out)
