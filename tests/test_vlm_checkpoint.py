"""Checkpoints: what is taken, what is refused and how it is said, and the hash that stands for the content."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from models import FAMILIES, Spec, folder, make_tokenizer, pair_at, pair_folder, pixels, processor_config
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from transformers import GemmaTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mlb_batch.cost.schedule import WHOLE
from mlb_batch.cost.shapes import model_shape
from mlb_batch.errors import ModelError, UserError
from mlb_batch.planning import plan
from mlb_batch.prune import make
from mlb_batch.spec import JobSpec
from mlb_batch.vlm.captioner import Captioner, Settings
from mlb_batch.vlm.checkpoint import Checkpoint, resolve
from mlb_batch.vlm.load import load, pick_device, pick_dtype
from mlb_batch.vlm.paired import Paired
from mlb_batch.vlm.preprocess import FrameRecipe, frame_recipe, paired_recipe
from mlb_batch.vlm.small_files import not_applied, refuse_window, tokenizer_of
from mlb_batch.vlm.vision import normalise

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
    ran = place / "ran"
    (place / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(ran) + b"'\ntR.")
    load(resolve(str(place)), torch.device("cpu"), torch.float32)
    assert not ran.exists()
    pickle.loads((place / "pytorch_model.bin").read_bytes())
    assert ran.exists(), "whoever opens it runs it"


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


@pytest.mark.parametrize(
    "id", ["/no/such/folder", "./nothing", "~/nothing", "neither-a-folder-nor-a-hub-id", "a/b/c", "my models/llava"]
)
def test_what_is_nowhere_is_refused(id: str) -> None:
    with pytest.raises(ModelError, match="is no folder here"):
        resolve(id)


def test_a_model_in_the_users_home_is_found_from_anywhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place.parent))
    found = resolve(f"~/{place.name}")
    assert (found.name, found.folder) == (f"~/{place.name}", place)


def test_a_model_is_named_by_the_key_that_names_it() -> None:
    with pytest.raises(ModelError, match=r"\Amodel\.id: no embedded model is called 'big': use tiny or tiny-image"):
        resolve("embedded:big")
    with pytest.raises(ModelError, match=r"\Aprune\.feature_model: '/nowhere' is no folder"):
        resolve("/nowhere", key="prune.feature_model")


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


def test_weights_are_read_for_their_hash_once_a_process_while_their_size_and_time_stand(place: Path) -> None:
    weights, first = place / "model.safetensors", resolve(str(place)).revision
    before = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert resolve(str(place)).revision == first
    os.utime(weights)
    assert resolve(str(place)).revision != first


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


def test_a_storage_that_nothing_here_can_open_is_one_line() -> None:
    with pytest.raises(UserError, match=r"\A[^\n]*gs:// needs the package gcsfs[^\n]*\Z"):
        resolve("gs://bucket/model")


def test_an_unknown_architecture_is_named_and_so_is_the_model(place: Path) -> None:
    (place / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match=rf"\Amodel\.id: '{place}': model_type 'bert' has no known"):
        resolve(str(place))
    with pytest.raises(ModelError, match=rf"\Aprune\.feature_model: '{place}': model_type 'bert' is no text/vis"):
        pair_at(place)


def test_weights_that_are_not_all_there_are_refused(place: Path) -> None:
    """transformers draws what is missing at random: another model in every process, and only its log says so."""
    weights = load_file(place / "model.safetensors")
    needless = {name: value for name, value in weights.items() if "post_layernorm" not in name}
    assert len(needless) < len(weights)
    save_file(needless, place / "model.safetensors", metadata={"format": "pt"})
    load(resolve(str(place)), torch.device("cpu"), torch.float32)  # behind the features that are taken
    gate = next(name for name in weights if "gate_proj" in name)
    save_file({k: v for k, v in weights.items() if k != gate}, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the model's weights, like .*gate_proj"):
        load(resolve(str(place)), torch.device("cpu"), torch.float32)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"has no model-00002-of-00002\.safetensors"):
        resolve(str(place))


def test_a_pair_that_is_not_all_there_is_refused(tmp_path: Path) -> None:
    place = Path(shutil.copytree(pair_folder(), tmp_path / "pair"))
    weights = load_file(place / "model.safetensors")
    head = next(name for name in weights if "text_model.head" in name)
    save_file({k: v for k, v in weights.items() if k != head}, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of the model's weights, like .*head"):
        Paired(pair_at(place), torch.device("cpu"), torch.float32)


def test_a_pair_whose_config_fits_its_weights_no_more_is_one_line(tmp_path: Path) -> None:
    place = Path(shutil.copytree(pair_folder(), tmp_path / "pair"))
    change(place / "config.json", "text_config", "intermediate_size", to=48)
    with pytest.raises(ModelError, match=r"\A[^\n]*transformers can't load it \([^\n]*\); copy it again\Z"):
        Paired(pair_at(place), torch.device("cpu"), torch.float32)


def without(name: str) -> Callable[[Path], None]:
    return lambda pair: (pair / name).unlink()


def _without_tokenizer(pair: Path) -> None:
    for path in pair.glob("tokenizer*"):
        path.unlink()


def _like_naflex(pair: Path) -> None:
    """SigLIP 2 with images of any shape: its processor knows of patches, and of no size."""
    change(pair / "config.json", "model_type", to="siglip2")
    naflex = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16, "max_num_patches": 256}
    (pair / "preprocessor_config.json").write_text(json.dumps(naflex))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_tokenizer, "tokenizer can't be loaded"),
        (without("preprocessor_config.json"), "no processor config"),
        (lambda pair: (pair / "tokenizer.json").write_text("{}"), "tokenizer can't be loaded"),
        (lambda pair: change(pair / "config.json", "vision_config", "vision_use_head", to=False), "vision_use_head"),
        (lambda pair: change(pair / "preprocessor_config.json", "size", to=24), r"24, 24\).*wants 20"),
        (_like_naflex, "model_type 'siglip2' is no text/vision pair"),
    ],
)
def test_what_is_wrong_with_a_pair_is_said_by_the_plan(
    spoil: Callable[[Path], Any], said: str, place: Path, tmp_path: Path
) -> None:
    pair = Path(shutil.copytree(pair_folder(), tmp_path / "pair"))
    spoil(pair)
    job = {"input": {"videos": f"{tmp_path}/*.mp4"}, "prompts": [{"id": "c", "kind": "caption", "text": "What?"}],
           "model": str(place), "prune": {"method": "adatp", "feature_model": str(pair)},
           "output": str(tmp_path / "out")}  # fmt: skip
    with pytest.raises(ModelError, match=said):
        plan(JobSpec.from_dict(job))


def test_a_pair_with_the_tokenizer_of_the_published_ones(tmp_path: Path) -> None:
    """SigLIP's own, for which transformers wants a package that it doesn't bring along."""
    pair = Path(shutil.copytree(pair_folder(), tmp_path / "pair"))
    _without_tokenizer(pair)
    words = ["a man is walking", "what happens in the video", "the quick brown fox jumps over the lazy dog"] * 30
    SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(pair / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, user_defined_symbols=["</x>"], minloglevel=2,
    )  # fmt: skip
    named = {"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    (pair / "tokenizer_config.json").write_text(json.dumps(named))
    look = Paired(pair_at(pair), torch.device("cpu"), torch.float32).look
    seen = look(pixels(SPEC, 3, 1), ["What happens?", "A man is walking."])
    assert seen.similarity_PF.shape == (2, 3) and not torch.equal(*seen.similarity_PF)


def test_a_pair_of_siglip_2_reads_lower_case(tmp_path: Path) -> None:
    """It learned no other; its tokenizer, Gemma's, keeps capitals."""
    pair = Path(shutil.copytree(pair_folder(), tmp_path / "pair"))
    _without_tokenizer(pair)
    signs = ["<pad>", "<eos>", "<bos>", "<unk>", *"▁?ahmntWw"]
    GemmaTokenizer(vocab={sign: id for id, sign in enumerate(signs)}, merges=[]).save_pretrained(pair)
    assert tokenizer_of(pair_at(pair)).encode("What?") != tokenizer_of(pair_at(pair)).encode("what?")
    look = Paired(pair_at(pair), torch.device("cpu"), torch.float32).look
    capital, lower, other = look(pixels(SPEC, 3, 1), ["What man?", "what man?", "what ham?"]).similarity_PF
    assert torch.allclose(capital, lower) and not torch.allclose(lower, other)


@pytest.mark.parametrize(
    ("keys", "value"), [(("text_config", "num_hidden_layers"), 99), (("text_config", "rms_norm_eps"), "1e-6")]
)
def test_a_config_that_transformers_refuses_is_one_line(keys: tuple[str, ...], value: Any, place: Path) -> None:
    change(place / "config.json", "text_config", "layer_types", to=["full_attention"] * SPEC.layers)
    change(place / "config.json", *keys, to=value)
    with pytest.raises(ModelError, match=r"transformers refuses its config.json \(.*mend it$"):
        refuse_window(resolve(str(place)))


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"added_tokens": []}'),
        ("tokenizer_config.json", '{"eos_token": -1}'),
    ],
)
def test_whatever_is_wrong_with_a_tokenizer_is_one_line(name: str, spoilt: str, place: Path) -> None:
    (place / name).write_text(spoilt)
    with pytest.raises(ModelError, match="tokenizer can't be loaded"):
        tokenizer_of(resolve(str(place)))


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer.json", "generation_config.json"]
)
@pytest.mark.parametrize("spoilt", ["{", "[1]", "\x00\xff"])
def test_a_small_file_that_is_damaged_is_named(name: str, spoilt: str, place: Path) -> None:
    (place / name).write_text(spoilt)
    with pytest.raises(ModelError, match=rf"{name}|tokenizer"):
        Captioner(resolve(str(place)), Settings(make("none", {}), WHOLE, 1, device="cpu"))


def change(path: Path, *keys: str, to: Any) -> None:
    """One value of a JSON file."""
    whole = json.loads(path.read_text()) if path.is_file() else {}
    part = whole
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("text_config",), [1], "text_config"), (("text_config", "num_attention_heads"), 0, "num_attention_heads"),
        (("text_config", "num_attention_heads"), "4", "num_attention_heads"),
        (("text_config", "hidden_size"), 1.5, "hidden_size"), (("vision_config", "patch_size"), -1, "patch_size"),
        (("text_config", "rope_parameters"), {"rope_type": "yarn", "factor": None}, "RoPE"),
        (("text_config", "rope_parameters"), {"rope_type": "linear", "factor": "2"}, "RoPE"),
        (("text_config", "rope_parameters"), {"rope_type": "foo"}, "'foo'"),
        (("text_config", "rope_parameters"), 2, "rope_parameters"),
        (("quantization_config",), {"quant_method": "awq"}, "quantised"),
        (("text_config", "quantization_config"), {"quant_method": "fp8"}, "quantised"),
    ],
)  # fmt: skip
def test_a_config_that_no_model_can_have_is_refused(keys: tuple[str, ...], value: Any, said: str, place: Path) -> None:
    change(place / "config.json", *keys, to=value)
    with pytest.raises(ModelError, match=said):
        resolve(str(place))


@pytest.mark.parametrize("kind", ["llava", "llava_qwen"])
def test_llavas_own_form_of_a_checkpoint_is_not_taken_for_a_model_of_usual_shape(kind: str, place: Path) -> None:
    """As lmms-lab and liuhaotian publish them: the language model's numbers stand at the top, and name its tower."""
    own = {"model_type": kind, "hidden_size": 3584, "num_hidden_layers": 28, "mm_vision_tower": "google/siglip"}
    (place / "config.json").write_text(json.dumps(own))
    with pytest.raises(ModelError, match=r"LLaVA's own form.*conversion for transformers \(llava-hf/"):
        resolve(str(place))


def test_weights_under_another_name_are_refused_by_the_plan(place: Path) -> None:
    (place / "model.safetensors").rename(place / "weights.safetensors")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        resolve(str(place))
    (place / "weights.safetensors").rename(place / "model.safetensors")
    change(place / "model.safetensors.index.json", "weight_map", to=["model.safetensors"])
    with pytest.raises(ModelError, match="weight_map"):
        resolve(str(place))


def test_what_transformers_cannot_load_is_the_users_to_mend(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    change(place / "config.json", "text_config", "intermediate_size", to=config["text_config"]["intermediate_size"] + 8)
    with pytest.raises(ModelError, match="can't load it"):
        load(resolve(str(place)), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("eos", ["</s>", [2, "</s>"], 2.5])
def test_a_token_to_stop_at_is_a_number(eos: Any, place: Path) -> None:
    change(place / "generation_config.json", "eos_token_id", to=eos)
    with pytest.raises(ModelError, match="eos_token_id"):
        list(not_applied(resolve(str(place))))  # by the plan


@pytest.mark.parametrize("layer", [None, [], "last", 99, [-1, -99]])
def test_a_feature_layer_that_is_none_is_refused(layer: Any, place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "vision_feature_layer": layer}))
    with pytest.raises(ModelError, match="vision_feature_layer"):
        resolve(str(place))


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, 4096),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),  # as Vicuna's longer versions have it
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}, 16384),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096),
    ],
)
def test_the_context_is_what_a_scaled_rope_reaches(config: dict[str, Any], context: int) -> None:
    text = {"model_type": "llama", "max_position_embeddings": 4096, **config}
    assert model_shape({"model_type": "llava", "text_config": text}).decoder.context == context


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
    for refuse in (refuse_window, lambda found: load(found, torch.device("cpu"), torch.float32)):  # by the plan too
        with pytest.raises(ModelError, match="sliding window of 4096"):
            refuse(resolve(str(place)))


def test_a_window_that_no_layer_looks_through_is_none(tmp_path: Path) -> None:
    """As Qwen2 writes it whose windows would begin behind its last layer."""
    place = Path(shutil.copytree(folder(FAMILIES["onevision"]), tmp_path / "model"))
    config = json.loads((place / "config.json").read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 28}
    config["text_config"].pop("layer_types", None)
    (place / "config.json").write_text(json.dumps(config))
    refuse_window(resolve(str(place)))
    change(place / "config.json", "text_config", "max_window_layers", to=1)
    with pytest.raises(ModelError, match="sliding window of 16"):
        refuse_window(resolve(str(place)))


def test_a_window_counts_where_the_models_own_class_looks_for_one(tmp_path: Path) -> None:
    """Mistral's by sliding_window alone, whatever layer_types say; Llama's not at all."""
    place = Path(shutil.copytree(folder(Spec("llava_next", "mistral", layers=2, seed=21)), tmp_path / "mistral"))
    change(place / "config.json", "text_config", "sliding_window", to=16)
    change(place / "config.json", "text_config", "layer_types", to=["full_attention"] * 2)
    with pytest.raises(ModelError, match="sliding window of 16"):
        refuse_window(resolve(str(place)))
    place = Path(shutil.copytree(folder(FAMILIES["llava"]), tmp_path / "llama"))
    change(place / "config.json", "text_config", "sliding_window", to=16)
    refuse_window(resolve(str(place)))


@pytest.mark.parametrize("name", ["onevision", "next"])
def test_of_two_processor_files_the_one_holds_that_transformers_takes(name: str, tmp_path: Path) -> None:
    """A downloaded folder into which a newer transformers saved the processor again holds both forms."""
    place = Path(shutil.copytree(folder(FAMILIES[name]), tmp_path / "model"))
    part = "video_processor" if name == "onevision" else "image_processor"
    newer = processor_config(FAMILIES[name].family, FAMILIES[name].image_px)
    (place / "processor_config.json").write_text(json.dumps({part: {**newer, "image_mean": [0.1, 0.1, 0.1]}}))
    older = "video_preprocessor_config.json" if name == "onevision" else "preprocessor_config.json"
    (place / older).write_text(json.dumps(newer))
    if name == "next":
        assert ImageProcessingMixin.get_image_processor_dict(str(place))[0]["image_mean"] == [0.1, 0.1, 0.1]
    assert frame_recipe(resolve(str(place))).mean == (0.1, 0.1, 0.1)


def test_a_processor_that_pads_to_a_square_is_refused(tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder(FAMILIES["llava"]), tmp_path / "model"))
    name = next(name for name in ("preprocessor_config.json", "processor_config.json") if (place / name).is_file())
    keys = ("image_processor", "do_pad") if name == "processor_config.json" else ("do_pad",)
    change(place / name, *keys, to=False)
    frame_recipe(resolve(str(place)))
    change(place / name, *keys, to=True)
    with pytest.raises(ModelError, match="do_pad"):
        frame_recipe(resolve(str(place)))


def test_what_generation_config_asks_for_and_does_not_get_is_told(place: Path) -> None:
    asked = {"num_beams": 4, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0}
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **asked}))
    assert list(not_applied(resolve(str(place)))) == ["num_beams: 4"]
    assert set(not_applied(resolve(str(place)), 0.7)) == {"num_beams: 4", "top_p: 0.8", "top_k: 20"}
    nothing = {"suppress_tokens": [], "bad_words_ids": [], "sequence_bias": {}, "min_new_tokens": 0, "min_p": 0.0}
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "guidance_scale": 1.5, **nothing}))
    assert list(not_applied(resolve(str(place)), 0.7)) == ["guidance_scale: 1.5"]


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


CLASSES: dict[str, Any] = {"llava": LlavaImageProcessorPil, "llava_next": LlavaNextImageProcessorPil}


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize(
    ("changes", "removed"),
    [
        ({}, ("image_mean", "image_std")),
        ({}, ("do_center_crop",)),
        ({}, ("resample", "do_resize", "rescale_factor")),
        ({"size": 20, "crop_size": 20}, ()),
        ({"do_normalize": False}, ()),
        ({"do_normalize": None}, ()),
        ({"image_mean": 0.0, "image_std": 1.0}, ()),
        ({"do_rescale": False}, ()),
        ({"do_rescale": None}, ()),
        ({"resample": 2}, ()),
    ],
)
def test_a_config_means_what_transformers_own_processor_takes_it_for(
    family: str, changes: dict[str, Any], removed: tuple[str, ...], tmp_path: Path
) -> None:
    config = {name: value for name, value in processor_config(family, 20).items() if name not in removed} | changes
    vision = {"model_type": "clip_vision_model", "image_size": 20, "patch_size": 4}
    files = {"preprocessor_config.json": config}
    recipe = frame_recipe(published(tmp_path, {"model_type": family, "vision_config": vision}, files))
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    theirs = CLASSES[family](**config)(Image.fromarray(pixels_HWC), return_tensors="pt")["pixel_values"]
    base_view = theirs[0, 0] if family == "llava_next" else theirs[0]
    ours = normalise(pixels_HWC[None], recipe, torch.device("cpu"), torch.float32)[0]
    torch.testing.assert_close(ours, base_view.float())


def test_a_way_of_resizing_that_is_not_known_is_refused(tmp_path: Path) -> None:
    for other in ({"resample": 4}, {"resample": [3]}, {"do_resize": False}):
        files = {"preprocessor_config.json": processor_config("llava", 336) | other}
        with pytest.raises(ModelError, match="does not resize"):
            frame_recipe(published(tmp_path, {"model_type": "llava"}, files))


def test_colours_by_one_number_or_none(tmp_path: Path) -> None:
    """One is for all channels, as transformers takes it."""
    files = {"preprocessor_config.json": processor_config("llava", 336) | {"image_mean": 0.5, "image_std": 0.25}}
    found = frame_recipe(published(tmp_path, {"model_type": "llava"}, files))
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)
    for wrong in ("0.5", [0.5], [0.5, None, 0.5]):
        files = {"preprocessor_config.json": processor_config("llava", 336) | {"image_mean": wrong}}
        with pytest.raises(ModelError, match="image_mean"):
            frame_recipe(published(tmp_path, {"model_type": "llava"}, files))


def test_siglip_pair(tmp_path: Path) -> None:
    config = {**processor_config("llava_onevision", 384), "image_processor_type": "SiglipImageProcessor"}
    pair = {"model_type": "siglip", "vision_config": {"image_size": 384}}
    found = paired_recipe(published(tmp_path, pair, {"preprocessor_config.json": config}))
    assert found == FrameRecipe((384, 384), None, "bicubic", HALF, HALF, 1 / 255)


def test_frames_that_do_not_fit_the_tower_are_refused(tmp_path: Path) -> None:
    files = {"preprocessor_config.json": processor_config("llava", 224)}
    with pytest.raises(ModelError, match=r"224.*336"):
        frame_recipe(published(tmp_path, {"model_type": "llava"}, files))
    with pytest.raises(ModelError, match="no processor config"):
        frame_recipe(Checkpoint("x", tmp_path / "nothing", {"model_type": "llava"}, "main"))
    for size in ({"longest_edge": 9}, {"height": 336}):
        with pytest.raises(ModelError, match="no size"):
            frame_recipe(published(tmp_path, {"model_type": "llava"}, {"preprocessor_config.json": {"size": size}}))
    with pytest.raises(ModelError, match="crop_size"):
        odd = processor_config("llava", 336) | {"crop_size": {"shortest_edge": 336}}
        frame_recipe(published(tmp_path, {"model_type": "llava"}, {"preprocessor_config.json": odd}))


def test_the_test_tokenizers_are_like_the_published_ones() -> None:
    assert make_tokenizer("llava")("hi").input_ids[0] == make_tokenizer("llava").bos_token_id
    assert make_tokenizer("llava_onevision").bos_token is None
