"""Every actor is placed before any starts: what does not fit is refused, and pools never outgrow the cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlb_batch.chain import pools as sizing
from mlb_batch.chain.pools import CAPTION_CPUS, Pools, refuse_hours_of
from mlb_batch.errors import ClusterError
from mlb_batch.spec import JobSpec

Nodes = list[dict[str, float]]


def spec(read: dict[str, Any] | None = None, caption: dict[str, Any] | None = None, device: str = "auto") -> JobSpec:
    return JobSpec.from_dict({
        "input": {"videos": "/videos/*.mp4"}, "prompts": [{"id": "c", "kind": "caption", "text": "Describe."}],
        "output": "/out", "model": {"device": device}, "cluster": {"read": read or {}, "caption": caption or {}},
    })  # fmt: skip


def pools(job: JobSpec, nodes: Nodes, clips: int = 10_000, clip_mb: float = 14, store_gb: float = 10) -> Pools:
    """Each node with a store, as Ray has it."""
    stored: Nodes = [{"object_store_memory": store_gb * 10**9, **node} for node in nodes]
    return sizing.pools(job, stored, clips, int(clip_mb * 10**6))


def test_two_cores_hold_one_reader_and_one_captioner() -> None:
    sizes = pools(spec(), [{"CPU": 2}])
    assert (sizes.readers, sizes.captioners, sizes.caption_gpus) == ((1, 1), (1, 1), 0)


def test_one_core_is_shared_by_a_small_reader_and_a_captioner() -> None:
    sizes = pools(spec({"num_cpus": 0.25}), [{"CPU": 1}])
    assert (sizes.readers, sizes.captioners) == ((1, 1), (1, 1))


def test_hours_of_one_kind_of_device_are_no_budget_on_another() -> None:
    on_cpus, on_gpus = pools(spec(), [{"CPU": 2}]), pools(spec(), [{"CPU": 8, "GPU": 2}])
    refuse_hours_of("gpu_hours", "cpu x 2", on_cpus)
    refuse_hours_of("gpu_hours", "NVIDIA H200", on_gpus)
    with pytest.raises(ClusterError, match=r"those of NVIDIA H200, and the captioners .* run on CPUs; run `mlb-batch"):
        refuse_hours_of("gpu_hours", "NVIDIA H200", on_cpus)
    with pytest.raises(ClusterError, match=r"those of cpu x 2, and the captioners .* run on GPUs"):
        refuse_hours_of("gpu_hours", "cpu x 2", on_gpus)


def test_every_gpu_gets_a_captioner_and_readers_get_the_cores_that_are_left() -> None:
    sizes = pools(spec(), [{"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 2}])
    assert (sizes.captioners, sizes.caption_gpus, sizes.caption_cpus) == ((4, 4), 1, 0)
    assert sizes.readers == (1, 8)


def test_captioners_on_gpus_never_wait_for_a_core() -> None:
    sizes = pools(spec(), [{"CPU": 1, "GPU": 4}])
    assert (sizes.captioners, sizes.readers) == ((4, 4), (1, 1))


def test_as_many_videos_are_under_way_as_all_captioners_take_at_once() -> None:
    many = pools(spec({"concurrency": 8}), [{"CPU": 64, "GPU": 16}] * 8, clips=10**6, store_gb=1000)
    assert many.under_way >= 2 * many.captioners[1] * many.batch_videos > 256 * many.readers[1]
    large = pools(spec(caption={"batch_videos": 1200}), [{"CPU": 2}], clip_mb=0.001)
    assert large.batch_videos == 1200 < large.under_way, "a batch never waits for videos that wait for it"
    assert pools(spec(), [{"CPU": 2}]).under_way == 1000


def test_a_gpu_can_be_shared() -> None:
    assert pools(spec(caption={"num_gpus": 0.5}), [{"CPU": 16, "GPU": 1}]).captioners == (2, 2)


@pytest.mark.parametrize(("share", "on_a_card"), [(0.4, 2), (0.6, 1), (1 / 3, 3), (0.1, 10)])
def test_what_is_left_of_one_gpu_and_of_another_is_no_room_for_a_captioner(share: float, on_a_card: int) -> None:
    nodes: Nodes = [{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 3}]
    most = 5 * on_a_card
    assert pools(spec(caption={"num_gpus": share}), nodes).captioners == (most, most)
    assert pools(spec(caption={"num_gpus": share, "concurrency": [1, 99]}), nodes).captioners == (1, most)
    with pytest.raises(ClusterError, match=rf"asks for {most + 1} x .* and {most} fit"):
        pools(spec(caption={"num_gpus": share, "concurrency": most + 1}), nodes)


@pytest.mark.parametrize(
    ("clips", "gpus", "batch"), [(10_000, 8, 32), (512, 8, 16), (100, 8, 8), (100, 1, 25), (3, 1, 8), (10_000, 0, 2)]
)
def test_a_gpu_gets_many_clips_at_once_where_every_captioner_has_some_batches(
    clips: int, gpus: int, batch: int
) -> None:
    nodes: Nodes = [{"CPU": 16, "GPU": gpus}]
    assert pools(spec(), nodes, clips, store_gb=100).batch_videos == batch
    assert pools(spec(caption={"batch_videos": 5}), nodes, clips).batch_videos == 5


@pytest.mark.parametrize(
    ("clip_mb", "store_gb", "a_look", "batch"),
    [(0.4, 10, 8, 100), (1.4, 10, 5, 100), (14, 10, 2, 99), (56, 10, 2, 18), (14, 2.4, 2, 17), (56, 1, 2, 1)],
)
def test_batches_and_what_readers_have_made_find_room_in_the_store(
    clip_mb: float, store_gb: float, a_look: int, batch: int
) -> None:
    """Of large clips Ray Data would let one through every ten seconds; whatever is asked for."""
    sizes = pools(spec(caption={"batch_videos": 100}), [{"CPU": 16, "GPU": 1}], 10_000, clip_mb, store_gb)
    assert (sizes.clips_a_look, sizes.batch_videos, sizes.readers[1]) == (a_look, batch, 8)
    if batch > 1:
        waiting = 2 * batch + 8 * a_look
        assert waiting * clip_mb * 1e6 <= 0.3 * store_gb * 1e9


@pytest.mark.parametrize(
    ("read", "caption", "device", "nodes", "says"),
    [
        ({"num_cpus": 4}, {}, "auto", [{"CPU": 2}], "cluster.read"),
        ({"num_cpus": 2}, {}, "auto", [{"CPU": 2}], "cluster.caption"),
        ({"concurrency": 4}, {}, "auto", [{"CPU": 2}], "cluster.read"),
        ({"num_cpus": 3}, {}, "auto", [{"CPU": 2}, {"CPU": 2}], "cluster.read"),
        ({}, {"concurrency": 9}, "auto", [{"CPU": 4}], "cluster.caption"),
        ({}, {"concurrency": 2, "num_gpus": 1}, "auto", [{"CPU": 4}], "none"),
        ({}, {"concurrency": 2, "num_gpus": 1}, "auto", [{"CPU": 4, "GPU": 1}], "cluster.caption"),
        ({}, {}, "cuda", [{"CPU": 4}], "none"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    read: dict[str, Any], caption: dict[str, Any], device: str, nodes: Nodes, says: str
) -> None:
    with pytest.raises(ClusterError, match=says) as refused:
        pools(spec(read, caption, device), nodes)
    assert "\n" not in str(refused.value)


@given(
    nodes=st.lists(
        st.fixed_dictionaries({"CPU": st.integers(0, 12), "GPU": st.integers(0, 4)}), min_size=1, max_size=5
    ),
    cpus=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    least=st.integers(1, 4),
    more=st.integers(0, 8),
)
def test_the_largest_pools_always_fit(nodes: Nodes, cpus: float, least: int, more: int) -> None:
    try:
        sizes = pools(spec({"num_cpus": cpus, "concurrency": [least, least + more]}), nodes)
    except ClusterError:
        # Refused only where the total really is too small, or where it is in too small pieces.
        total = sum(node["CPU"] for node in nodes)
        assume(total >= least * cpus + CAPTION_CPUS)
        assert any(node["CPU"] % cpus or node["CPU"] < cpus + CAPTION_CPUS for node in nodes)
        return
    asked = sizes.readers[1] * sizes.read_cpus + sizes.captioners[1] * sizes.caption_cpus
    assert asked <= sum(node["CPU"] for node in nodes)
    assert sizes.captioners[1] * sizes.caption_gpus <= sum(node["GPU"] for node in nodes)
    assert least == sizes.readers[0] <= sizes.readers[1] <= least + more
