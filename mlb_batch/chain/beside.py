"""Actors that remember for a run: they lie on the node of its driver, so that no other node that goes takes what they
know along, and end when it does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_driver(kind: type, **options: Any) -> Any:
    """The actor class for the driver, which calls this; it asks for no CPU, so that there is always room for it."""
    # Hard: of what asks for nothing Ray would take a soft one for none, and place it anywhere.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here, **options)


def release(actor: Any) -> None:
    """Ends it with its run: it would live as long as the cluster, which may run many jobs."""
    with suppress(ray.exceptions.RayError):  # a cluster that is gone has taken it along
        ray.kill(actor)
