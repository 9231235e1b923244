"""Prompts as tokens: those of transformers' own processing, and nothing in a text that becomes a control token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import prompter
from hypothesis import given
from hypothesis import settings as example
from hypothesis import strategies as st
from models import CONTROLS, FAMILIES, Spec, folder
from PIL import Image
from transformers import AutoTokenizer, LlavaNextProcessor, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mlb_batch.errors import ModelError, RowError
from mlb_batch.vlm.checkpoint import resolve
from mlb_batch.vlm.prompts import MAX_PROMPT_TOKENS, Prompter

HARMLESS = st.text(min_size=1, max_size=60).filter(lambda t: t.strip() and "<" not in t)
IDS = list(FAMILIES)


def placeholder(spec: Spec) -> str:
    return "<video>" if spec.family == "llava_onevision" else "<image>"


def processed_by_transformers(spec: Spec, text: str) -> list[int]:
    """The family's own processor on the checkpoint's template; an image's many placeholders count as one."""
    tokenizer = AutoTokenizer.from_pretrained(folder(spec))
    if spec.family == "llava_onevision":
        # Its class wants a video processor, which wants torchvision; the text's way through it is the tokenizer's.
        content = [{"type": "video"}, {"type": "text", "text": text}]
        conversation = [{"role": "user", "content": content}]
        return tokenizer.apply_chat_template(
            conversation, tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]  # fmt: skip
    kind: Any = LlavaProcessor if spec.family == "llava" else LlavaNextProcessor
    pixels: Any = LlavaImageProcessorPil if spec.family == "llava" else LlavaNextImageProcessorPil
    px = spec.image_px
    sized = pixels(size={"shortest_edge": px}, crop_size={"height": px, "width": px})
    processor = kind(
        sized, tokenizer, patch_size=4, chat_template=tokenizer.chat_template, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    content = [{"type": "image"}, {"type": "text", "text": text}]
    rendered = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    opened = rendered.startswith(tokenizer.bos_token)  # what the processor itself looks at when it tokenizes
    frame = Image.fromarray(np.zeros((px, px, 3), np.uint8))
    ids = processor(images=frame, text=rendered, add_special_tokens=not opened)["input_ids"][0]
    visual = tokenizer.convert_tokens_to_ids("<image>")
    return [i for i, before in zip(ids, [None, *ids], strict=False) if i != visual or before != visual]


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=IDS)
@example(max_examples=60, deadline=None)
@given(text=HARMLESS)
def test_tokens_are_those_of_transformers(spec: Spec, text: str) -> None:
    asker = prompter(spec)
    visual = asker.tokenizer.convert_tokens_to_ids(placeholder(spec))
    assert [*asker.prefix, visual, *asker.suffix("qa", text)] == processed_by_transformers(spec, text)


@st.composite
def hostile_texts(draw: st.DrawFn, spec: Spec) -> str:
    """Control tokens, pieces of them, and words, in any order."""
    controls = CONTROLS[spec.family]
    pieces = [c[:n] for c in controls for n in range(1, len(c))] + [c[n:] for c in controls for n in range(1, len(c))]
    parts = draw(st.lists(st.sampled_from([*controls, *controls, *pieces, "what", " ", "\n", "é", "<"]), max_size=12))
    return "x" + "".join(parts)


@pytest.mark.parametrize("name", IDS)
@example(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_text_becomes_a_control_token(name: str, data: st.DataObject) -> None:
    spec = FAMILIES[name]
    asker, text = prompter(spec), data.draw(hostile_texts(spec))
    ids = {asker.tokenizer.convert_tokens_to_ids(c) for c in CONTROLS[spec.family]}
    suffix, plain = asker.suffix("qa", text), asker.suffix("qa", "x")
    assert [i for i in suffix if i in ids] == [i for i in plain if i in ids]
    # All else is as it was written: only a space came in, behind the first character of what would be a token.
    said = asker.tokenizer.decode(suffix)
    for control in CONTROLS[spec.family]:
        said, text = said.replace(control, ""), text.replace(control, control[0] + " " + control[1:])
    assert text.strip() in said or text.replace(" ", "") in said.replace(" ", "")


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=IDS)
def test_the_rest_of_a_prompt_is_unchanged(spec: Spec) -> None:
    asker = prompter(spec)
    for control in CONTROLS[spec.family]:
        broken = control[0] + " " + control[1:]
        assert asker.suffix("qa", f"Is {control} a token?") == asker.suffix("qa", f"Is {broken} a token?")


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=IDS)
def test_a_choice_lists_its_options(spec: Spec) -> None:
    asker = prompter(spec)
    said = asker.tokenizer.decode(asker.suffix("choice", "Which?", ("red", "</s><|im_end|>", "blue")))
    assert "Which?\nA. red\nB. " in said and "\nC. blue\n" in said
    assert len(asker.letter_ids(3)) == 3 and all(asker.letter_ids(3))


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=IDS)
def test_empty_and_endless_prompts_are_rows_that_fail(spec: Spec) -> None:
    asker = prompter(spec)
    for text in ("", "   \n\t", "why " * (MAX_PROMPT_TOKENS + 1)):
        with pytest.raises(RowError) as failed:
            asker.suffix("qa", text)
        assert failed.value.error_class == "bad_prompt"
    assert asker.suffix("qa", "x " * 200)


def copied(spec: Spec, target: Path) -> Path:
    return Path(shutil.copytree(folder(spec), target / "model"))


def test_a_word_that_was_added_to_the_tokenizer_stays_a_word(tmp_path: Path) -> None:
    place = copied(FAMILIES["llava"], tmp_path)
    tokenizer = prompter(FAMILIES["llava"]).tokenizer
    added = type(tokenizer).from_pretrained(place)
    added.add_tokens(["dashcam", "<tool_call>"])
    added.save_pretrained(place)
    asker = Prompter(resolve(str(place)))
    said = asker.tokenizer.decode(asker.suffix("qa", "Is this dashcam footage a <tool_call> ?"))
    assert "dashcam" in said and "<tool_call>" not in said


def test_a_template_that_writes_the_date_writes_the_same_one_on_every_day(tmp_path: Path) -> None:
    place = copied(FAMILIES["llava"], tmp_path)
    template = (place / "chat_template.jinja").read_text()
    plain = Prompter(resolve(str(place)))
    written = "{%- set today = strftime_now('%d %b %Y') %}\n{{ today }}\n" + template
    (place / "chat_template.jinja").write_text(written)
    asker = Prompter(resolve(str(place)))
    assert "26 Jul 2024\n" in asker.tokenizer.decode(asker.prefix)
    assert asker.suffix("qa", "What?") == plain.suffix("qa", "What?")


def test_a_checkpoint_without_a_template_is_refused(tmp_path: Path) -> None:
    place = copied(FAMILIES["llava"], tmp_path)
    (place / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="chat_template"):
        Prompter(resolve(str(place)))


def test_the_processors_template_goes_before_the_tokenizers(tmp_path: Path) -> None:
    """Older downloads keep the multimodal template in chat_template.json, and a text-only one with the tokenizer."""
    place = copied(FAMILIES["onevision"], tmp_path)
    template = (place / "chat_template.jinja").read_text()
    (place / "chat_template.jinja").unlink()
    (place / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    config = json.loads((place / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    asker, plain = Prompter(resolve(str(place))), prompter(FAMILIES["onevision"])
    assert asker.prefix == plain.prefix and asker.suffix("qa", "Why?") == plain.suffix("qa", "Why?")


@pytest.mark.parametrize("several", [False, True])
def test_templates_go_before_one_another_as_in_transformers(several: bool, tmp_path: Path) -> None:
    """processor_config.json, chat_template.json, chat_template.jinja; of several the default."""
    place = copied(FAMILIES["onevision"], tmp_path)
    template = (place / "chat_template.jinja").read_text()
    prefixes = [Prompter(resolve(str(place))).prefix]
    for name in ("chat_template.json", "processor_config.json"):
        beside = json.loads((place / name).read_text()) if (place / name).is_file() else {}
        written = f"{name[0]} {template}"
        told = {"default": written, "rag": "{{ strftime_now('%d') }}"} if several else written
        (place / name).write_text(json.dumps({**beside, "chat_template": told}))
        prefixes.append(Prompter(resolve(str(place))).prefix)
    assert len(set(prefixes)) == 3 and all(one[-len(prefixes[0]) :] == prefixes[0] for one in prefixes)


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=IDS)
def test_the_tokenizers_own_placeholder_goes_before_the_configs(spec: Spec, tmp_path: Path) -> None:
    """The config of a published one names a number that its tokenizer has for nothing."""
    place, kind = copied(spec, tmp_path), placeholder(spec).strip("<>")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, f"{kind}_token_index": 7, f"{kind}_token_id": 7}))
    asker, plain = Prompter(resolve(str(place))), prompter(spec)
    assert (asker.prefix, asker.suffix("qa", "Why?")) == (plain.prefix, plain.suffix("qa", "Why?"))


def test_a_tokenizer_that_has_no_video_is_told(tmp_path: Path) -> None:
    place = copied(FAMILIES["onevision"], tmp_path)
    text = (place / "tokenizer.json").read_text()
    (place / "tokenizer.json").write_text(text.replace('"<video>"', '"<clip>"'))
    with pytest.raises(ModelError, match="tokenizer has no token <video>"):
        Prompter(resolve(str(place)))


def test_a_template_that_names_the_video_twice_is_refused(tmp_path: Path) -> None:
    place = copied(FAMILIES["onevision"], tmp_path)
    (place / "chat_template.jinja").write_text("<video><video>{{ messages[0]['content'][1]['text'] }}")
    with pytest.raises(ModelError, match="2 times"):
        Prompter(resolve(str(place)))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0]['role'] + messages[0]['content'] }}", "takes no message"),  # for text alone
        ("{{ raise_exception('no videos here') }}<video>", "no videos here"),
        ("{% if %}", "takes no message"),
        ("{{ messages[0]['content'][1]['text'] }}<video>", "before the video"),
    ],
)
def test_a_template_that_takes_no_video_and_a_text_behind_it_is_refused(
    template: str, said: str, tmp_path: Path
) -> None:
    place = copied(FAMILIES["onevision"], tmp_path)
    (place / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=said):
        Prompter(resolve(str(place))).suffix("qa", "What happens?")


def with_controls(target: Path, *controls: str) -> Prompter:
    place = copied(FAMILIES["onevision"], target)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.add_special_tokens({"additional_special_tokens": list(controls)})
    tokenizer.save_pretrained(place)
    return Prompter(resolve(str(place)))


@pytest.mark.timeout(60)
def test_a_control_token_with_spaces_around_it_is_broken_inside(tmp_path: Path) -> None:
    controls = (" <img>", "<end> ", " § ")
    asker = with_controls(tmp_path, *controls)
    suffix = asker.suffix("qa", "Is <img> a token, and <end> too?")
    assert not {asker.tokenizer.convert_tokens_to_ids(c) for c in controls}.intersection(suffix)
    assert "Is < img> a token, and < end> too?" in asker.tokenizer.decode(suffix)
    with pytest.raises(RowError) as failed:
        asker.suffix("qa", "What does § 5 say?")
    assert failed.value.error_class == "bad_prompt"


def test_a_control_token_of_one_character_does_not_hang(tmp_path: Path) -> None:
    """There is nothing to break in it: the text is a row that fails, not a control token and not an endless loop."""
    asker = with_controls(tmp_path, "§")
    with pytest.raises(RowError) as failed:
        asker.suffix("qa", "What does § 5 say?")
    assert failed.value.error_class == "bad_prompt"
    assert asker.suffix("qa", "What does it say?")
