"""Training: packed questions stand alone, a grown model computes the same, and a resumed run changes no bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from mlb_batch.tiny.build import build
from mlb_batch.tiny.render import RGB
from mlb_batch.tiny.scenes import check, make_scene, tell
from mlb_batch.tiny.train import __main__ as command
from mlb_batch.tiny.train import image, paired, video
from mlb_batch.tiny.train.ahead import Ahead
from mlb_batch.tiny.train.answers import answer_logits
from mlb_batch.tiny.train.drawing import ClipBatch, Drawing, Lesson
from mlb_batch.tiny.train.frames import make_frames
from mlb_batch.tiny.train.grow import grow
from mlb_batch.tiny.train.lessons import exam_talk
from mlb_batch.tiny.train.loop import Pace, Task, train
from mlb_batch.tiny.train.pixels import clip_pixels, model_pixels
from mlb_batch.tiny.train.reading import text_tasks
from mlb_batch.tiny.words import COLOURS, SHAPES
from mlb_batch.tiny.world import CORNER, make_clip

LESSONS = (Lesson(until=20, frames=(8,), batch_frames=8, max_acts=2, max_flashes=1),)


def quiet(folder: Path, stop_at: int) -> Pace:
    return Pace(folder, stop_at, log_every=1000, measure_every=1000, save_every=1000)


def clip_task() -> Task:
    return video.clip_task(video.ClipStudent(video.fresh_model(0, layers=2)), 0, LESSONS, peak_lr=2e-3)


def test_twenty_steps_lower_the_loss_and_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path):
    whole, stopped, resumed = clip_task(), clip_task(), clip_task()
    losses = train(whole, quiet(tmp_path / "whole", 20))
    first = train(stopped, quiet(tmp_path / "parts", 10))
    then = train(resumed, quiet(tmp_path / "parts", 20))
    assert first + then == losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_batches_that_others_draw_ahead_are_the_same():
    here, others = (Ahead(partial(Drawing, 3, LESSONS), 8, processes) for processes in (0, 2))
    for step in (0, 1, 2, 7):
        one, other = here(step), others(step)
        assert isinstance(one, ClipBatch) and isinstance(other, ClipBatch)
        assert (one.pixels_BFHWC == other.pixels_BFHWC).all() and torch.equal(one.packed.ids_BL, other.packed.ids_BL)


def test_the_lessons_of_another_seed_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders: list[Path] = []
    monkeypatch.setattr(command, "_video", lambda args: folders.append(args.folder))
    for seed in ("0", "1", "2"):
        threads = str(torch.get_num_threads())
        monkeypatch.setattr("sys.argv", ["", "video", "--seed", seed, "--folder", str(tmp_path), "--threads", threads])
        command.main()
    assert folders == [tmp_path, tmp_path / "seed-1", tmp_path / "seed-2"]


def test_a_packed_question_gets_what_it_would_get_alone():
    model = video.fresh_model(0, layers=3).eval()
    school = video.ClipSchool(video.ClipStudent(model), 0, LESSONS)
    clip = make_clip(5, 8)
    pixels = model_pixels(clip.pixels_FHWC[None])
    talks = exam_talk(clip)[:6]
    visual_1ND = model.model.get_video_features(pixels).pooler_output
    packed = school.packer.pack_visual(visual_1ND.shape[1], [talks])
    together, _ = answer_logits(model, school.packer.media_id, packed, visual_1ND.flatten(0, 1))
    model.model.language_model.set_attn_implementation("sdpa")
    alone = []
    for talk in talks:
        before, after, asked = school.packer.branch(talk.prompt, talk.answer)
        ids = torch.tensor([[*before, *[school.packer.media_id] * visual_1ND.shape[1], *after]])
        logits_LV = model(input_ids=ids, pixel_values_videos=pixels).logits[0]
        alone.append(logits_LV[asked - len(after) - 1 : -1])
    assert torch.allclose(torch.cat(alone), together, atol=1e-4)


def test_a_grown_model_computes_what_the_shallow_one_does():
    shallow, deep = video.fresh_model(0, layers=3), video.fresh_model(1, layers=8)
    ids = torch.arange(40)[None]
    before = deep(input_ids=ids).logits
    after = grow(shallow, deep)(input_ids=ids).logits
    assert torch.allclose(after, shallow(input_ids=ids).logits, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-2)


def test_the_towers_first_lesson_lowers_its_loss(tmp_path: Path):
    task = video.frame_tasks(video.fresh_model(0, layers=1), 0, batch=16)[0]
    losses = train(task, quiet(tmp_path, 12))
    assert losses[-1] < 0.8 * losses[0]


def test_the_lessons_in_text_lower_their_loss_and_leave_the_tower_alone(tmp_path: Path):
    student = video.ClipStudent(video.fresh_model(0, layers=2))
    before = [parameter.clone() for parameter in student.model.model.vision_tower.parameters()]
    for task in text_tasks(student, video.reader_of(student.model), 0):
        losses = train(task, quiet(tmp_path / task.name, 12))
        assert sum(losses[-3:]) < 0.99 * sum(losses[:3]), task.name
    assert all(map(torch.equal, before, student.model.model.vision_tower.parameters()))
    assert 0 <= task.measure(12)["looked up among 6"] <= 1


def test_the_paired_lesson_lowers_its_loss(tmp_path: Path):
    losses = train(paired.task(paired.fresh_model(0), 0, frames=16), quiet(tmp_path, 12))
    assert losses[-1] < losses[0]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path):
    task = clip_task()
    broken = Task(task.name, task.model, lambda step: task.loss(step) * float("nan"), task.measure, 20, 1e-3)
    with pytest.raises(RuntimeError, match="at step 0"):
        train(broken, quiet(tmp_path, 20))
    assert not (tmp_path / "last.pt").exists()


def test_tiles_are_those_of_the_checkpoints_own_processor(tmp_path: Path):
    build("tiny-image", tmp_path, seed=0)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    scene = make_scene(4, 144)
    theirs_KCHW = processor(images=Image.fromarray(scene.pixels_HWC), return_tensors="pt").pixel_values[0]
    ours_KCHW = image.tiles(clip_pixels(scene.pixels_HWC[None]))[0]
    assert ours_KCHW.shape == theirs_KCHW.shape == (5, 3, 72, 72)
    assert torch.allclose(ours_KCHW[1:], theirs_KCHW[1:], atol=1e-4)
    assert (ours_KCHW[0] - theirs_KCHW[0]).abs().mean() < 0.1


def test_the_image_lesson_sees_single_and_tiled_scenes_and_lowers_its_loss(tmp_path: Path):
    task = image.scene_task(image.fresh_model(0, layers=1), 0, steps=16)
    losses = train(task, quiet(tmp_path, 16))
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("seed", range(5))
def test_scenes_say_what_they_show(seed: int):
    scene, again, large = make_scene(seed, 72), make_scene(seed, 72), make_scene(seed, 144)
    assert (scene.pixels_HWC == again.pixels_HWC).all() and scene.things == large.things
    for thing in scene.things:
        x, y = CORNER[thing.place]
        patch_HWC = scene.pixels_HWC[int(y * 72) - 12 : int(y * 72) + 12, int(x * 72) - 12 : int(x * 72) + 12]
        assert (abs(patch_HWC.astype(int) - RGB[thing.colour]).max(-1) < 12).sum() > 12
        assert thing.name in scene.caption and thing.place in scene.caption


@pytest.mark.parametrize("seed", range(5))
def test_a_telling_says_every_trait_of_every_thing_once(seed: int):
    things = make_scene(seed, 72).things
    said = tell(things, np.random.default_rng(seed)).removesuffix(".").split(". ")
    traits = [sorted(f"{thing.colour} {thing.shape} {thing.place}".split()) for thing in things]
    assert sorted(sorted(line.split()) for line in said) == sorted(traits)


@pytest.mark.parametrize("seed", range(5))
def test_a_check_is_right_about_each_name_and_each_absent_one_is_near_to_one_that_is_there(seed: int):
    names = {thing.name for thing in make_scene(seed, 72).things}
    said = check(make_scene(seed, 72).things, np.random.default_rng(seed)).removesuffix(".").split(". ")
    verdicts = [line.rsplit(" ", 1) for line in said]
    assert sorted(name for name, verdict in verdicts if verdict == "yes") == sorted(names)
    absent = [name for name, verdict in verdicts if verdict == "no"]
    assert len(absent) == len(names) and not names & set(absent)
    assert all(any(set(name.split()) & set(there.split()) for there in names) for name in absent)


def test_a_tower_is_told_of_a_shape_in_its_own_cell_or_in_all_within_reach():
    near, own = (make_frames((7, 0), 24, 72, 12, least=1, reach=reach) for reach in (1.5, 0.5))
    middles = torch.arange(12) + 0.5
    for index, (sprites, names) in enumerate(zip(near.objects, near.names, strict=True)):
        for sprite, (colour, shape) in zip(sprites, names, strict=True):
            y, x = ((middles - at * 12).abs() for at in (sprite.y, sprite.x))
            reached = (y[:, None] <= 1.5) & (x[None] <= 1.5)
            assert (near.colour_BGG[index][reached] == COLOURS.index(colour)).all()
            assert (near.shape_BGG[index][reached] == SHAPES.index(shape)).all()
            assert own.colour_BGG[index, int(sprite.y * 12), int(sprite.x * 12)] == COLOURS.index(colour)
        assert (own.colour_BGG[index] < len(COLOURS)).sum() == len(sprites)


def test_what_is_said_of_letters_is_so():
    scene = make_scene(3, 72)
    talks = image.lesson_talk(scene, np.random.default_rng(0), drills=True)
    given = [talk for talk in talks if talk.kind == "given away"]
    lettered = [talk for talk in talks if talk.kind == "lettered"]
    assert given and lettered
    for talk in given:
        hint, *asked = talk.prompt.split("\n")
        assert hint == f"It is {options_in(talk.prompt)[talk.answer]}."
        assert "\n".join(asked) in {question.prompt for question in scene.questions}
    for talk in lettered:
        said = [line.rsplit(" ", 1) for line in talk.answer.removesuffix(".").split(". ")]
        assert {letter: option for option, letter in said} == options_in(talk.prompt)


def options_in(prompt: str) -> dict[str, str]:
    return dict(line.split(". ", 1) for line in prompt.split("\n") if line[1:3] == ". ")
