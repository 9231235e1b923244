"""The embedded models' shapes: the real classes of each family, made small.

- tiny: SigLIP tower, 64 px in 8 px patches, pooled to 4 x 4 tokens a frame; Qwen2, 16 thin layers, grouped-query heads
- tiny-image: a CLIP tower, 72 px in 6 px patches, 12 x 12 tokens an image or tile; Llama, 12 thin layers
- tiny-paired: SigLIP with both towers, for the likeness of a text and a frame
"""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipConfig,
    SiglipVisionConfig,
)

VIDEO_PX, IMAGE_PX, PAIRED_PX = 64, 72, 64
PAIRED_TEXT_TOKENS = 32
VIDEO_LAYERS, IMAGE_LAYERS = 16, 12
_BICUBIC = 3
_HALF = [0.5, 0.5, 0.5]
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def video_config(tokenizer: PreTrainedTokenizerFast, layers: int = VIDEO_LAYERS) -> LlavaOnevisionConfig:
    vision = SiglipVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        image_size=VIDEO_PX, patch_size=8, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.05, max_position_embeddings=32768,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlavaOnevisionConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True,
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_grid_pinpoints=_video_pinpoints(),
    )  # fmt: skip


def image_config(tokenizer: PreTrainedTokenizerFast, layers: int = IMAGE_LAYERS) -> LlavaNextConfig:
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4,
        image_size=IMAGE_PX, patch_size=6, projection_dim=64,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=320, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, initializer_range=0.05, max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlavaNextConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=True, image_seq_length=144,
        image_token_index=token_id(tokenizer, "<image>"), image_grid_pinpoints=_image_pinpoints(),
    )  # fmt: skip


def paired_config(tokenizer: PreTrainedTokenizerFast) -> SiglipConfig:
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": PAIRED_TEXT_TOKENS, "projection_size": 128,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": PAIRED_PX, "patch_size": 8,
    }  # fmt: skip
    return SiglipConfig(text_config=text, vision_config=vision)


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _video_pinpoints() -> list[list[int]]:
    return [[h, w] for h in (VIDEO_PX, 2 * VIDEO_PX) for w in (VIDEO_PX, 2 * VIDEO_PX)]


def _image_pinpoints() -> list[list[int]]:
    return [[IMAGE_PX, 2 * IMAGE_PX], [2 * IMAGE_PX, IMAGE_PX], [2 * IMAGE_PX, 2 * IMAGE_PX]]


def _pixels(size: dict[str, int], mean: list[float], std: list[float]) -> dict[str, Any]:
    return {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": mean, "image_std": std, "resample": _BICUBIC, "rescale_factor": 1 / 255, "size": size,
    }  # fmt: skip


def processor_files(name: str) -> dict[str, dict[str, Any]]:
    """The JSON files that say how pixels become inputs, by file name, as each family has them."""
    if name == "tiny":
        pixels = _pixels({"height": VIDEO_PX, "width": VIDEO_PX}, _HALF, _HALF)
        return {
            "preprocessor_config.json": {
                **pixels, "do_pad": True, "image_grid_pinpoints": _video_pinpoints(),
                "image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor",
            },
            "video_preprocessor_config.json": {
                **pixels, "video_processor_type": "LlavaOnevisionVideoProcessor",
                "processor_class": "LlavaOnevisionProcessor",
            },
            "processor_config.json": {
                "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": (VIDEO_PX // 8) ** 2,
                "vision_feature_select_strategy": "full", "image_token": "<image>", "video_token": "<video>",
                "vision_aspect_ratio": "anyres_max_9",
            },
        }  # fmt: skip
    if name == "tiny-image":
        return {
            "preprocessor_config.json": {
                **_pixels({"shortest_edge": IMAGE_PX}, CLIP_MEAN, CLIP_STD), "do_center_crop": True, "do_pad": True,
                "crop_size": {"height": IMAGE_PX, "width": IMAGE_PX}, "image_grid_pinpoints": _image_pinpoints(),
                "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
            },
            "processor_config.json": {
                "processor_class": "LlavaNextProcessor", "patch_size": 6, "num_additional_image_tokens": 1,
                "vision_feature_select_strategy": "default", "image_token": "<image>",
            },
        }  # fmt: skip
    return {
        "preprocessor_config.json": {
            **_pixels({"height": PAIRED_PX, "width": PAIRED_PX}, _HALF, _HALF),
            "image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor",
        },
    }  # fmt: skip
