"""Where text looks, read from the engine, against transformers' own eager attention; and what is made of it."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from engine_runs import prompter
from models import FAMILIES, Spec, checkpoint, eager, folder, pixels

from mlb_batch.errors import InputError
from mlb_batch.evaluate.bias import VARIANTS, lines, measure, picture, places_picture, table_rows
from mlb_batch.evaluate.items import Item
from mlb_batch.spec import JobSpec
from mlb_batch.video.write import write_mp4
from mlb_batch.vlm.bias import Gaze, Looked
from mlb_batch.vlm.choices import choice_text

QUESTION = "Who is walking there?"


def eager_rows(spec: Spec, frames: np.ndarray, text: str) -> np.ndarray:
    """The last token's attention to the visual tokens in every layer, from the matrices that eager attention writes."""
    one = oracles.lane(spec, prompter(spec).prefix, frames, prompter(spec).suffix("qa", text))
    rows = []
    for layers in range(1, len(eager(spec).model.language_model.layers) + 1):
        _, (paid_HTT,) = oracles.forward(spec, [one], lambda *_: [list(range(one.visual))], layers=layers)
        rows.append(paid_HTT[:, -1, one.columns].mean(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES)
def test_the_gaze_is_what_eager_attention_says(spec: Spec) -> None:
    frames = pixels(spec, 4, seed=2)
    looked = Gaze(checkpoint(spec), device="cpu").look(frames, QUESTION)
    expected = eager_rows(spec, frames, QUESTION)
    assert looked.paid_LN.shape == expected.shape == (spec.layers, 4 * spec.tokens_per_frame)
    assert np.abs(looked.paid_LN - expected).max() < 1e-5
    assert expected.std() > 1e-3, "an even attention would agree with anything"
    by_frame = expected.reshape(spec.layers, 4, -1).sum(2)
    assert looked.by_frame_LF == pytest.approx(by_frame / by_frame.sum(1, keepdims=True), abs=1e-4)
    by_place = expected.reshape(spec.layers, 4, -1).sum(1)
    assert looked.by_place_LK == pytest.approx(by_place / by_place.sum(1, keepdims=True), abs=1e-4)


def test_a_choice_is_looked_at_with_its_options() -> None:
    spec = FAMILIES["onevision"]
    gaze, frames, options = Gaze(checkpoint(spec), device="cpu"), pixels(spec, 2, seed=1), ("a man", "a dog")
    as_choice = gaze.look(frames, QUESTION, options).paid_LN
    assert np.array_equal(as_choice, gaze.look(frames, choice_text(QUESTION, options)).paid_LN)
    assert not np.allclose(as_choice, gaze.look(frames, QUESTION).paid_LN, atol=1e-4)


def test_variants_of_a_clip() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    changed = {name: make(frames) for name, make in VARIANTS.items()}
    assert all(one.shape == frames.shape and one.dtype == np.uint8 for one in changed.values())
    assert np.array_equal(changed["as it is"], frames) and np.array_equal(changed["reversed"], frames[[4, 3, 2, 1, 0]])
    assert np.unique(changed["grey"]).size == 1
    assert all(np.array_equal(frame, frames[2]) for frame in changed["repeated"])


def job(tmp_path, frames: int = 4, **source: object) -> JobSpec:
    return JobSpec.from_dict({
        "input": {"videos": str(tmp_path), **source}, "prompts": [{"id": "any", "kind": "qa", "text": "any"}],
        "model": {"id": str(folder(FAMILIES["onevision"])), "device": "cpu"}, "frames": {"count": frames},
        "output": str(tmp_path / "out"),
    })  # fmt: skip


def test_measuring_reads_videos_as_a_job_does_and_leaves_out_what_it_cannot(tmp_path) -> None:
    spec = FAMILIES["onevision"]
    rng = np.random.default_rng(1)
    for name in ("a", "b"):
        write_mp4(tmp_path / f"{name}.mp4", rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8), fps=4)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    items = [Item(name, f"{name}.mp4", "open", QUESTION, "x") for name in ("a", "b", "broken", "missing")]
    items.append(Item("out", "../elsewhere.mp4", "open", QUESTION, "x"))
    found = measure("small", job(tmp_path), items, 9)
    assert [one.variant for one in found] == list(VARIANTS) and {one.clips for one in found} == {2}
    for one in found:
        assert one.by_frame_LF.shape == (spec.layers, 4)
        assert one.by_place_LK.shape == (spec.layers, one.rows * one.cols)
        assert one.by_frame_LF.sum(1) == pytest.approx(1) and one.by_place_LK.sum(1) == pytest.approx(1)
        assert np.all((one.to_visual_L > 0) & (one.to_visual_L < 1))
    rows = table_rows(found)
    assert len(rows) == 4 * spec.layers and len(lines(found)) == 2 + len(rows)
    for drawn in (picture(found), places_picture(found)):
        assert drawn.startswith("<svg") and "grey (2 clips)" in drawn
    with pytest.raises(InputError, match="can be read"):
        measure("small", job(tmp_path), items[2:], 9)


def test_links_out_of_the_folder_are_followed_where_the_job_allows_it(tmp_path) -> None:
    """As a job would: a download's cache holds links to its files. A name may hold what begins a scheme."""
    there, cache = tmp_path / "videos", tmp_path / "cache"
    there.mkdir(), cache.mkdir()
    write_mp4(cache / "1f", np.zeros((4, 16, 16, 3), np.uint8), fps=4)
    (there / "a:1.mp4").symlink_to(cache / "1f")
    items = [Item("a", "a:1.mp4", "open", QUESTION, "x")]
    assert measure("small", job(there, 2, allow=[str(there), str(cache)]), items, 9)[0].clips == 1
    with pytest.raises(InputError, match="none of the 1 videos"):
        measure("small", job(there, 2), items, 9)


def test_shares_are_of_the_attention_to_visual_tokens_alone() -> None:
    paid_LN = np.array([[0.1, 0.1, 0.0, 0.2], [0.0, 0.3, 0.3, 0.0]], np.float32)
    looked = Looked(frames=2, rows=1, cols=2, paid_LN=paid_LN)
    assert looked.by_frame_LF == pytest.approx(np.array([[0.5, 0.5], [0.5, 0.5]]))
    assert looked.by_place_LK == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))


def test_a_clip_without_content_is_looked_at_unevenly_by_position_alone() -> None:
    """On grey frames whatever is uneven comes from position: the same frame at another place gets another share."""
    spec = FAMILIES["onevision"]
    grey = VARIANTS["grey"](pixels(spec, 6, seed=1))
    gaze = Gaze(checkpoint(spec), device="cpu")
    with torch.inference_mode():
        shares = gaze.look(grey, QUESTION).by_frame_LF
    assert np.array_equal(gaze.look(VARIANTS["reversed"](grey), QUESTION).by_frame_LF, shares)
    assert shares.max() > 1.2 / 6
