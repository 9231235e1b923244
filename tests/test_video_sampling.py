"""The rules of sampling, as properties of any list of times."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from mlb_batch.video import Sampling
from mlb_batch.video.sampling import clip_frames, pick, uniform

times = st.lists(st.integers(0, 10_000), min_size=1, max_size=200, unique=True).map(
    lambda ms: np.array(sorted(ms)) / 1000
)


@given(st.integers(1, 5000), st.integers(1, 128))
def test_uniform_is_the_reference_rule_without_repeats(total: int, count: int) -> None:
    assert uniform(total, count).tolist() == sorted(set(np.linspace(0, total - 1, count, dtype=int).tolist()))


@given(times, st.integers(0, 12_000), st.integers(1, 12_000))
@example(np.array([0.0, 10.0]), 11_000, 1_000)  # right where the video ends
def test_a_clip_is_what_starts_in_it_else_what_is_on_screen(times_s: np.ndarray, start_ms: int, length_ms: int) -> None:
    """In whole milliseconds, as spans name an annotation; their floats may be off by their last digits."""
    frames = clip_frames(times_s, 11.0, start_ms / 1000, start_ms / 1000 + length_ms / 1000).tolist()
    times_ms = np.rint(times_s * 1000).astype(int).tolist()
    inside = [i for i, ms in enumerate(times_ms) if start_ms <= ms < start_ms + length_ms]
    earlier = [i for i, ms in enumerate(times_ms) if ms < start_ms]
    on_screen = earlier[-1:] or [0]  # before the first picture, that one
    assert frames == (inside or (on_screen if start_ms < 11_000 else []))


@given(times, st.floats(0.1, 100), st.integers(1, 64))
def test_fps_is_what_is_on_screen_at_each_tick(times_s: np.ndarray, fps: float, cap: int) -> None:
    end_s = times_s[-1] + 0.5
    everything = np.arange(len(times_s))
    got = pick(times_s, np.zeros(len(times_s), bool), everything, 0.0, end_s, Sampling(cap, "fps", fps))
    ticks = [k / fps for k in range(10_000) if k < end_s * fps - 1e-6]
    on_screen = sorted(
        {max([i for i, t in enumerate(times_s) if t * fps - 1e-6 <= tick * fps], default=0) for tick in ticks}
    )
    assert got.tolist() == (on_screen if len(on_screen) <= cap else uniform(len(times_s), cap).tolist())


def test_fps_may_be_absurd() -> None:
    times_s = np.arange(100.0)
    assert len(pick(times_s, times_s > 0, np.arange(100), 0.0, 100.0, Sampling(200, "fps", 1e12))) == 100
    assert pick(times_s, times_s > 0, np.arange(100), 0.0, 100.0, Sampling(200, "fps", 1e-9)).tolist() == [0]


@given(times, st.integers(1, 64), st.sampled_from(["uniform", "fps", "keyframes"]), st.data())
def test_no_frame_twice_in_order_and_never_too_many(
    times_s: np.ndarray, count: int, strategy: str, data: st.DataObject
) -> None:
    is_key = np.array(data.draw(st.lists(st.booleans(), min_size=len(times_s), max_size=len(times_s))))
    got = pick(times_s, is_key, np.arange(len(times_s)), 0.0, 11.0, Sampling(count, strategy, 10.0)).tolist()
    assert got == sorted(set(got)) and len(got) <= count
    if strategy == "keyframes":
        assert is_key[got].all() and len(got) == min(count, is_key.sum())
