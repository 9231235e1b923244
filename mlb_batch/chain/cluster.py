"""A Ray to run on: the one that is there, or a local one, which is stopped again."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.utils import get_num_cpus  # no public one tells before Ray has started
from ray.data import DataContext

from mlb_batch.errors import ClusterError, JobError
from mlb_batch.processes import Process, below, children, end
from mlb_batch.stop import STOPPED
from mlb_batch.storage_errors import first_line

# Of one start. Ray has limits of its own, but its core can wait for ever for a raylet that never answers.
START_S = 180.0
# Of joining a cluster: to reach its port, and to be answered there. Ray itself asks for ten minutes where no head is,
# and hears of a signal between two attempts of 40 s each.
KNOCK_S, JOIN_S = 10.0, 60.0

Nodes = list[Mapping[str, float]]
_HEAD = re.compile(r"(?P<host>[\w-]{1,63}(\.[\w-]{1,63})*|\[[\da-f:]+\]):(?P<port>\d{1,5})", re.ASCII | re.IGNORECASE)

# A few source rows, one clip with its frames, a few results: what one task hands on. Ray Data's 128 MB would put a
# whole manifest into one block, and one block is read by one actor.
BLOCK_BYTES = 4096
# An actor that dies while it starts (a node goes) is started again so often in a row; 0, the default, would end the
# job, and -1 would start for ever what can't start.
STARTING_DEATHS = 5
LOOK_S = 0.05  # between two looks at whether this process has left Ray
SOON_S = 5.0  # in which the actors of a chain that has ended are gone
SHUTTING_S = 30.0  # that Ray has to shut down before its processes are ended under its hands
LEAVING_S = 10.0  # that Ray's processes have to be gone, and then once more
STARTS = 3  # of a local Ray, which gives its processes 30 s to come up, whatever else the machine does


@contextmanager
def connected() -> Iterator[Nodes]:
    """The resources of each node of the cluster that this process is in, that RAY_ADDRESS names, or of this machine."""
    joined = ray.is_initialized()
    others, handler = children(os.getpid()), signal.getsignal(signal.SIGTERM)
    if not joined:
        _start()
        _on(signal.SIGTERM, handler)  # Ray has put its own there
    started = [one for one in children(os.getpid()) if one not in others]
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say of a run, the run's own lines say
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if not joined:
            shut_down(started)
            _on(signal.SIGTERM, handler)


def say_if_crowded(least: Mapping[str, float]) -> None:
    """Where others hold what a run needs `least` it stands still until they end, and would not say why."""
    end_s = time.monotonic() + SOON_S
    while short := _short_of(least, ray.available_resources()):
        if time.monotonic() > end_s:
            needs = " and ".join(f"{most:g} {kind}" for kind, most in short.items())
            print(f"warning: this run needs {needs}, and others hold so much of the cluster that it waits for them",
                  file=sys.stderr, flush=True)  # fmt: skip
            return
        time.sleep(LOOK_S)


def _short_of(least: Mapping[str, float], free: Mapping[str, float]) -> dict[str, float]:
    return {kind: most for kind, most in least.items() if free.get(kind, 0.0) < most - 1e-9}


def shut_down(started: Sequence[Process]) -> None:
    """And all that a local Ray has `started`; of an actor that hangs on its way out Ray itself loses track.

    Deaf to SIGTERM and Ctrl-C: what they ask for is under way, and they would end this process before its last word.
    """
    theirs = [*started, *(one for each in started for one in below(each.pid))]
    interrupts = signal.getsignal(signal.SIGINT)
    _on(signal.SIGINT, signal.SIG_IGN)
    _on(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_once_left, args=(theirs,), daemon=True).start()
    ray.shutdown()
    _on(signal.SIGTERM, signal.SIG_IGN)  # once more: Ray's core has put back what the system does
    end(theirs, LEAVING_S)
    _on(signal.SIGINT, interrupts)


def _end_once_left(theirs: Sequence[Process]) -> None:
    """`ray.shutdown` asks them to end by SIGTERM, to which they are deaf, and gives each a second to answer. Before it
    does, it waits for one that hangs, for minutes: so that ends too.
    """
    end_s = time.monotonic() + SHUTTING_S
    while ray.is_initialized() and time.monotonic() < end_s:
        time.sleep(LOOK_S)
    end(theirs, patience_s=0)


def _on(number: signal.Signals, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler or signal.SIG_DFL)


def _start() -> None:
    try:
        named = os.environ.get("RAY_ADDRESS") or "local"
        if named != "local":  # also set inside a submitted job
            _join(named)
        else:
            start_local()
    except SystemExit as left:  # so Ray itself answers a SIGTERM, with the signal's number, from its first moment on
        raise SystemExit(STOPPED if left.code == signal.SIGTERM else left.code) from None
    except (OSError, ray.exceptions.AuthenticationError) as error:  # no token, or no folder for it (RAY_TMPDIR)
        raise JobError(f"Ray can't start: {first_line(error)}; run the same command again once it can") from error


def _join(named: str) -> None:
    if named != "auto":
        _knock(named)
    late = f"no Ray answered at RAY_ADDRESS={named} within {JOIN_S:.0f} s: is it the port of a cluster's head?"
    try:
        with _time_limit(2, JOIN_S, late):
            ray.init(logging_level=logging.WARNING)
    except ConnectionError as error:  # it is down, or too busy to answer in time
        raise JobError(f"{error}, which RAY_ADDRESS names; run the same command again once it answers") from error
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):
            raise
        ray.shutdown()  # it is half joined
        raise ClusterError(f"RAY_ADDRESS={named}: {' '.join(str(error).split())}; run the job with the versions that "
                           "the cluster has, or the cluster with those of the job") from None  # fmt: skip


def _knock(named: str) -> None:
    """ClusterError where it is no address of a head, JobError where nothing listens: that may pass."""
    head = _HEAD.fullmatch(named)
    if not head or int(head["port"]) > 65535:
        raise ClusterError(
            f"RAY_ADDRESS={named}: a run joins a cluster by its head's host and port, like 10.0.0.5:6379, or by auto "
            "on a machine of the cluster (http:// is for `ray job submit` alone, and ray:// can't carry a run); "
            "unset it for a Ray of this machine's own"
        )
    try:
        socket.create_connection((head["host"].strip("[]"), int(head["port"])), KNOCK_S).close()
    except OSError as error:
        raise JobError(f"RAY_ADDRESS={named}: nothing answers there ({error.strerror or error}); run the same command "
                       "again once the cluster is up, or mend the address") from error  # fmt: skip


def start_local(num_cpus: int | None = None) -> None:
    """A Ray of this process alone; None: as many CPUs as it may use. Raises JobError on a machine too busy for one."""
    # Ray Data's actors always have arguments in the object store, which makes Ray's core print an alarm at every start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    late = f"Ray did not start within {START_S:.0f} s"
    for _ in range(STARTS):
        with _stderr_of_others_closed() as stderr, _time_limit(stderr, START_S, late), _deaf_to_sigterm():
            try:
                return _init_local(num_cpus)
            except Exception as error:  # Ray has no narrower one for it
                if "timed out during startup" not in str(error):
                    raise
    raise JobError(f"Ray's own processes did not answer within 30 s, {STARTS} times: this machine is too busy; run the "
                   "same command again when it is less so, or on a cluster (RAY_ADDRESS)")  # fmt: skip


def _init_local(num_cpus: int | None) -> None:
    ray.init(
        address="local",  # never one that happens to run here
        num_cpus=num_cpus or _usable_cpus(),
        include_dashboard=False,  # nothing listens that nobody asked for
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"enable_metrics_collection": False},
    )


def _usable_cpus() -> int:
    """Ray's own count knows a container's quota, and not the cores that a batch system pinned this process to."""
    counted = get_num_cpus(override_docker_cpu_warning=True)
    return max(2, min(len(os.sched_getaffinity(0)), int(counted)))  # on one, reading and captioning take turns


@contextmanager
def _deaf_to_sigterm() -> Iterator[None]:
    """What is started here stays so: a SIGTERM that all of a process group gets (`timeout` and Slurm send it so) is the
    driver's to answer, and Ray is to be there until it has. This process hears of it later.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _time_limit(stderr: int, most_s: float, late: str) -> Iterator[None]:
    """Ends this process: where Ray's core waits no exception reaches, and its processes go with the one they are of."""

    def give_up() -> None:
        os.write(stderr, f"{late}; run the same command again to resume\n".encode())
        os._exit(1)

    timer = threading.Timer(most_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _stderr_of_others_closed() -> Iterator[int]:
    """Ray's own processes, and its core in this one, say hello on stderr while they start; errors are raised anyway.

    Gives what stderr was.
    """
    sys.stderr.flush()
    ours, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield ours
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.close(nothing)


def data_context(clips_a_look: int) -> DataContext:
    """Ray Data as a run needs it; `clips_a_look`: how many of a task's results wait until it looks, see pools.py."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context._max_num_blocks_in_streaming_gen_buffer = clips_a_look
    context.max_errored_blocks = 0  # anything else drops the good rows of a bad block, silently
    context.max_consecutive_actor_init_deaths = STARTING_DEATHS
    context.raise_original_map_exception = True  # a job's own error in a worker must come back as what it is
    context.enable_progress_bars = False  # the run has its own
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context
