"""The embedded checkpoint folders: plain transformers loads them, and what goes in comes back."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoTokenizer

import mlb_batch.tiny
from mlb_batch.errors import ModelError
from mlb_batch.tiny import NAMES, folder, trained
from mlb_batch.tiny.build import build, make_model
from mlb_batch.tiny.train.pixels import model_pixels
from mlb_batch.tiny.words import COLOURS, SHAPES
from mlb_batch.tiny.world import make_clip

ANY_TEXT = [
    "What colour is the red circle?\nA. red\nB. blue",
    "Ünïcode 日本語 🎬\n\n\tx",
    "  two  spaces ",
    "café's 100%",
]


@pytest.fixture(scope="module", params=NAMES)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / request.param
    build(request.param, path, seed=3)
    return request.param, path


def test_weights_come_back_as_they_were_stored(checkpoint):
    name, path = checkpoint
    kind = AutoModel if name == "tiny-paired" else AutoModelForImageTextToText
    loaded = kind.from_pretrained(path)
    made = make_model(name, seed=3).state_dict()
    assert loaded.dtype == torch.float32
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, made[key].half().float()), key


def test_files_are_complete_and_small(checkpoint):
    name, path = checkpoint
    files = {file.name for file in path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "README.md"} <= files
    assert (path / "model.safetensors").stat().st_size < 20_000_000
    if name != "tiny-paired":
        assert {"generation_config.json", "chat_template.jinja", "processor_config.json"} <= files


def test_any_text_goes_through_the_tokenizer_and_comes_back(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint[1])
    for text in ANY_TEXT:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    for word in (*COLOURS, *SHAPES):
        assert len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1


def test_the_image_processor_gives_what_the_model_takes(checkpoint):
    name, path = checkpoint
    from PIL import Image

    processor = AutoImageProcessor.from_pretrained(path)
    pixels_HWC = make_clip(1, 8).pixels_FHWC[0]
    out = processor(images=Image.fromarray(pixels_HWC), return_tensors="pt").pixel_values
    if name == "tiny-paired":
        assert torch.allclose(out[0], model_pixels(pixels_HWC), atol=1e-5)
    assert out.shape[-1] == out.shape[-2] == {"tiny": 64, "tiny-image": 72, "tiny-paired": 64}[name]


def test_the_video_model_generates_through_transformers_alone(tmp_path: Path):
    build("tiny", tmp_path, seed=0)
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    frames = 8
    ids = tokenizer(text.replace("<video>", "<video>" * (frames * 16 + 1)), return_tensors="pt").input_ids
    pixels = model_pixels(make_clip(1, frames).pixels_FHWC[None])
    out = model.generate(input_ids=ids, pixel_values_videos=pixels, max_new_tokens=4)
    assert out.shape[0] == 1 and ids.shape[1] < out.shape[1] <= ids.shape[1] + 4


def test_chat_template_puts_the_video_first():
    tokenizer = AutoTokenizer.from_pretrained(folder("tiny"))
    message = [{"role": "user", "content": [{"type": "text", "text": "Hi?"}, {"type": "video"}]}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<video>\nHi?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="tiny-paired"):
        folder("huge")


def _folder_in(cache: str) -> str:
    import os

    os.environ["XDG_CACHE_HOME"] = cache
    return str(mlb_batch.tiny._cached_random("tiny-paired"))


def test_two_processes_may_build_the_cached_folder_at_once(tmp_path: Path):
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_folder_in, [str(tmp_path)] * 2))
    assert found[0] == found[1]
    assert (Path(found[0]) / "model.safetensors").is_file()
    assert [entry.name for entry in Path(found[0]).parent.iterdir()] == ["tiny-paired"]


def test_finding_a_folder_imports_no_torch_when_nothing_is_to_be_built():
    code = "import sys, mlb_batch.tiny; mlb_batch.tiny.trained('tiny'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_packaged_weights_are_what_transformers_loads(name):
    if not trained(name):
        pytest.skip(f"no trained weights are packaged for {name}")
    kind = AutoModel if name == "tiny-paired" else AutoModelForImageTextToText
    model, info = kind.from_pretrained(folder(name), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(np.isfinite(parameter.detach().numpy()).all() for parameter in model.parameters())
