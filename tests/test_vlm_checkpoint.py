"""Checkpoints: what is taken, what is refused and how it is said, and the hash that stands for the content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from models import FAMILIES, Spec, folder, make_tokenizer, processor_config

from mlb_batch.cost.schedule import WHOLE
from mlb_batch.errors import ModelError
from mlb_batch.prune import make
from mlb_batch.vlm.captioner import Captioner, Settings
from mlb_batch.vlm.checkpoint import Checkpoint, resolve
from mlb_batch.vlm.load import load, pick_device, pick_dtype
from mlb_batch.vlm.preprocess import FrameRecipe, frame_recipe, paired_recipe

SPEC = FAMILIES["onevision"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(folder(SPEC), tmp_path / "model"))


def test_pickled_weights_are_refused_and_named(place: Path) -> None:
    (place / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, place / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin.*can run code.*safetensors"):
        resolve(str(place))


def test_pickled_weights_beside_good_ones_are_never_opened(place: Path) -> None:
    (place / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    load(resolve(str(place)), torch.device("cpu"), torch.float32)


def test_weights_whose_header_lies_are_refused_before_they_are_read(place: Path) -> None:
    weights = place / "model.safetensors"
    data = weights.read_bytes()
    for header in (2**62, 2**31, 0):
        weights.write_bytes(header.to_bytes(8, "little") + data[8:])
        with pytest.raises(ModelError, match=r"model\.safetensors is damaged.*header"):
            resolve(str(place))
    for spoilt in (data[: len(data) // 2], data[:8] + b"{" * (len(data) - 8), b""):
        weights.write_bytes(spoilt)
        with pytest.raises(ModelError, match="damaged"):
            resolve(str(place))


def test_code_that_comes_with_a_checkpoint_is_not_run(place: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (place / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    for name, kinds in (
        ("config.json", ("AutoConfig", "AutoModelForImageTextToText")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
        ("preprocessor_config.json", ("AutoImageProcessor",)),
    ):
        config = json.loads((place / name).read_text())
        (place / name).write_text(json.dumps({**config, "auto_map": dict.fromkeys(kinds, "evil.Evil")}))
    Captioner(resolve(str(place)), Settings(make("none", {}), WHOLE, 1, device="cpu"))
    assert not canary.exists()


def test_a_folder_without_config_or_weights_is_refused(place: Path) -> None:
    (place / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors weights"):
        resolve(str(place))
    (place / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config.json"):
        resolve(str(place))


@pytest.mark.parametrize("id", ["/no/such/folder", "./nothing", "~/nothing", "neither-a-folder-nor-a-hub-id", "a/b/c"])
def test_what_is_nowhere_is_refused(id: str) -> None:
    with pytest.raises(ModelError, match="is no folder here"):
        resolve(id)


def test_the_revision_changes_with_every_byte_that_can_change_a_text(place: Path) -> None:
    seen = {resolve(str(place)).revision}
    small = ("config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json")
    for name in ("model.safetensors", *small):
        content = bytearray((place / name).read_bytes())
        content[-2] ^= 1
        (place / name).write_bytes(content)
        seen.add(json_free_revision(place))
        content[-2] ^= 1
        (place / name).write_bytes(content)
    assert len(seen) == 6
    (place / "README.md").write_text("hello")
    assert resolve(str(place)).revision in seen


def json_free_revision(place: Path) -> str:
    """A flipped byte may leave a config that is no JSON; its hash is taken all the same."""
    from mlb_batch.vlm.checkpoint import _content_hash

    return _content_hash(place)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_folder_behind_a_uri_is_copied_once_and_when_it_changes(scheme: str, place: Path, tmp_path: Path) -> None:
    uri = f"memory://models/{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}/remote"
    fs, root = fsspec.core.url_to_fs(uri)
    fs.put(str(place), root, recursive=True)
    first = resolve(uri)
    assert first.revision == resolve(str(place)).revision and first.name == uri
    assert resolve(uri).folder == first.folder and first.folder.is_relative_to(tmp_path / "cache")
    config = fs.cat_file(f"{root}/config.json")
    fs.pipe_file(f"{root}/config.json", config.replace(b'"transformers_version": "5', b'"transformers_version": "4'))
    second = resolve(uri)  # as many bytes as before
    assert second.folder != first.folder and second.revision != first.revision
    with pytest.raises(ModelError, match="nothing is at"):
        resolve(uri + "/nowhere")


def test_pickled_weights_behind_a_uri_are_not_even_copied(place: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    root = f"/pickled/{tmp_path.name}"
    fs.put(str(place), root, recursive=True)
    fs.pipe_file(f"{root}/pytorch_model.bin", b"no")
    assert not list(resolve(f"memory:/{root}").folder.glob("*.bin"))


def test_an_unknown_architecture_is_named(place: Path) -> None:
    (place / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="bert"):
        _ = resolve(str(place)).shape


@pytest.mark.parametrize("written", [True, False], ids=["in the file", "the class default, left out of the file"])
def test_a_sliding_window_is_refused(written: bool, tmp_path: Path) -> None:
    """Mistral's own default is a window of 4096, and a saved config leaves defaults out."""
    spec = Spec("llava_next", "mistral", layers=2, context=8192, seed=21)
    place = Path(shutil.copytree(folder(spec), tmp_path / "model"))
    config = json.loads((place / "config.json").read_text())
    config["text_config"].pop("sliding_window", None)
    if written:
        config["text_config"]["sliding_window"] = 4096
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="sliding window of 4096"):
        load(resolve(str(place)), torch.device("cpu"), torch.float32)


def test_devices_and_types_that_are_none() -> None:
    with pytest.raises(ModelError, match=r"model.device"):
        pick_device("quantum")
    with pytest.raises(ModelError, match=r"model.dtype"):
        pick_dtype("int3", torch.device("cpu"))
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ModelError, match="no CUDA device"):
            pick_device("cuda")


# How frames are prepared: configs as the published checkpoints have them.

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def published(tmp_path: Path, config: dict[str, Any], files: dict[str, Any]) -> Checkpoint:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return Checkpoint("published", tmp_path, config, "main")


def test_llava_1_5(tmp_path: Path) -> None:
    """The shortest edge to 336 and a centre crop."""
    files = {"preprocessor_config.json": processor_config("llava", 336)}
    found = frame_recipe(published(tmp_path, {"model_type": "llava"}, files))
    assert found == FrameRecipe(336, (336, 336), "bicubic", CLIP_MEAN, CLIP_STD, 1 / 255)


def test_llava_next_takes_its_base_view(tmp_path: Path) -> None:
    """The whole image squashed to 336 x 336, which is what its processor does before it tiles."""
    config = {**processor_config("llava_next", 336), "image_grid_pinpoints": [[336, 672], [672, 336]]}
    found = frame_recipe(published(tmp_path, {"model_type": "llava_next"}, {"preprocessor_config.json": config}))
    assert found == FrameRecipe((336, 336), None, "bicubic", CLIP_MEAN, CLIP_STD, 1 / 255)


@pytest.mark.parametrize("layout", ["video file", "inside the processor", "image file only"])
def test_llava_onevision(layout: str, tmp_path: Path) -> None:
    video = processor_config("llava_onevision", 384)
    image = {**video, "image_mean": [0.1, 0.1, 0.1]}  # never taken where there is a video's own
    files: dict[str, Any] = {
        "video file": {"preprocessor_config.json": image, "video_preprocessor_config.json": video},
        "inside the processor": {"processor_config.json": {"video_processor": video, "image_processor": image}},
        "image file only": {"preprocessor_config.json": video, "processor_config.json": {"num_image_tokens": 729}},
    }[layout]
    vision = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
    found = frame_recipe(published(tmp_path, {"model_type": "llava_onevision", "vision_config": vision}, files))
    assert found == FrameRecipe((384, 384), None, "bicubic", HALF, HALF, 1 / 255)


def test_siglip_pair(tmp_path: Path) -> None:
    config = {**processor_config("llava_onevision", 384), "image_processor_type": "SiglipImageProcessor"}
    found = paired_recipe(published(tmp_path, {"model_type": "siglip"}, {"preprocessor_config.json": config}))
    assert found == FrameRecipe((384, 384), None, "bicubic", HALF, HALF, 1 / 255)


def test_frames_that_do_not_fit_the_tower_are_refused(tmp_path: Path) -> None:
    files = {"preprocessor_config.json": processor_config("llava", 224)}
    with pytest.raises(ModelError, match=r"224.*336"):
        frame_recipe(published(tmp_path, {"model_type": "llava"}, files))
    with pytest.raises(ModelError, match="no processor config"):
        frame_recipe(Checkpoint("x", tmp_path / "nothing", {"model_type": "llava"}, "main"))
    with pytest.raises(ModelError, match="no size"):
        sizeless = {"preprocessor_config.json": {"size": {"longest_edge": 9}}}
        frame_recipe(published(tmp_path, {"model_type": "llava"}, sizeless))


def test_the_test_tokenizers_are_like_the_published_ones() -> None:
    assert make_tokenizer("llava")("hi").input_ids[0] == make_tokenizer("llava").bos_token_id
    assert make_tokenizer("llava_onevision").bos_token is None
