"""The lease: one run writes to an output at a time.

OUTPUT/lease.json names the holder and holds a counter that a thread moves every few seconds. Whoever finds a lease
watches the counter by its own monotonic clock: clocks of two machines are never compared. If it moves, the other run
lives; if it stands still for `ttl_s`, that run lost the lease. A holder that is known to be dead (same machine, no such
process) is replaced at once. The lease spares work; that no row is doubled is the commit's business (see log.py).
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import threading
import time
import uuid
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from mlb_batch.errors import JobError, MlbBatchError, OutputError
from mlb_batch.processes import Process
from mlb_batch.storage import Store, open_store
from mlb_batch.storage_errors import patience_of

NAME = "lease.json"
BEATS_PER_TTL = 6
WATCHES_PER_TTL = 15
MOST_VANISHED = 100  # leases in a row that stood there and were gone when they were looked at


@dataclass(frozen=True)
class Holder:
    """What lease.json says."""

    token: str
    run_id: str
    host: str
    machine: str  # one boot of one machine, and in it one process namespace: where `pid` means something
    pid: int
    pid_started: str
    since: str
    counter: int
    term: int = 0  # one more than that of the run that was taken over from

    @staticmethod
    def this_process(run_id: str) -> Holder:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        here, machine = Process.of(os.getpid()), _machine()
        return Holder(uuid.uuid4().hex, run_id, socket.gethostname(), machine, here.pid, here.started.decode(), now, 0)

    def surely_dead(self) -> bool:
        if self.machine == "" or self.machine != _machine():
            return False
        return not Process(self.pid, self.pid_started.encode()).is_there

    def __str__(self) -> str:
        return f"run {self.run_id} on {self.host} (process {self.pid}, since {self.since})"


class Lease:
    """Held until its first `with` ends; a heartbeat renews it every few seconds."""

    def __init__(self, output_uri: str, run_id: str, ttl_s: float = 30.0) -> None:
        self._store: Store = open_store(output_uri)
        self._ttl_s = ttl_s
        self._mine = Holder.this_process(run_id)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._entered = 0
        self._renewed_at_s = 0.0
        self._lost_to: str | None = None
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._entered += 1
        if self._entered > 1:
            return self
        with self._impatience():
            self._acquire()
        self._renewed_at_s = time.monotonic()
        self._store.clean()
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._entered -= 1
        if self._entered:
            return
        self._stop.set()
        self._heart.join()
        with self._impatience(), suppress(JobError):  # where the storage is gone, the lease runs out by itself
            holder = self._read()
            if holder is not None and holder.token == self._mine.token:
                self._store.delete(NAME)

    def check(self) -> None:
        """JobError where another run took the lease over, or where it can't be known any more."""
        if time.monotonic() - self._renewed_at_s > self._ttl_s / 2:
            self._renew()  # the heart missed beats: this process may have been stopped for long, or the storage is
        if self._lost_to is not None:
            raise JobError(
                f"{self._store.uri}: this run lost its lease to {self._lost_to}; what it committed stays, "
                "the other run does the rest"
            )

    def _impatience(self) -> AbstractContextManager[None]:
        """What is seen of a lease is of no use once it may have run out. Only `check` waits as all storage is waited
        for: it has nothing else to do.
        """
        return patience_of(self._ttl_s / 2)

    def _acquire(self) -> None:
        vanished = 0
        while not self._store.create(NAME, self._encoded()):
            holder = self._read()
            if holder is None:  # released in between, as a rule
                vanished += 1
                if vanished > MOST_VANISHED:
                    raise OutputError(f"{self._store.uri}/{NAME} stands there and can't be read: a link that leads "
                                      "nowhere? Delete it once no run is writing here")  # fmt: skip
                continue
            if holder.token == self._mine.token:
                break  # our own create, whose answer got lost
            if holder.surely_dead() or not self._moves(holder):
                self._take_over(holder)
                return
        if self._store.create(NAME, self._encoded()):
            raise OutputError(
                f"{self._store.uri}: this storage doesn't keep a file from being overwritten (conditional create), "
                "so two runs could double rows; use S3, Google Cloud Storage, Azure or a local disk"
            )

    def _moves(self, seen: Holder) -> bool:
        """Watch for one `ttl_s`; OutputError where the holder shows that it lives."""
        stands_until_s = time.monotonic() + self._ttl_s
        while time.monotonic() < stands_until_s:
            time.sleep(self._ttl_s / WATCHES_PER_TTL)
            holder = self._read()
            if holder is None:
                return True
            if (holder.token, holder.counter) != (seen.token, seen.counter):
                raise OutputError(
                    f"{self._store.uri}: another run is writing here: {holder}; wait for it, or stop it first "
                    f"(a dead run is noticed after {self._ttl_s:.0f} s)"
                )
        return False

    def _take_over(self, dead: Holder) -> None:
        """Of several runs that take over at once, the one whose lease stands after a moment has it."""
        self._mine = replace(self._mine, term=dead.term + 1)
        self._store.replace(NAME, self._encoded())
        time.sleep(self._ttl_s / WATCHES_PER_TTL)
        holder = self._read()
        if holder is None or holder.token != self._mine.token:
            raise OutputError(f"{self._store.uri}: another run took this output over first: {holder}")

    def _beat(self) -> None:
        while not self._stop.wait(self._ttl_s / BEATS_PER_TTL):
            with self._impatience(), suppress(MlbBatchError):  # a hiccup; check() decides once the lease is old
                self._renew()
            if self._lost_to is not None:
                return

    def _renew(self) -> None:
        with self._lock:
            begun_s = time.monotonic()
            if not self._still_mine():
                return
            self._mine = replace(self._mine, counter=self._mine.counter + 1)
            self._store.replace(NAME, self._encoded())
            if time.monotonic() - begun_s > self._ttl_s / 2:
                # Stopped between looking and writing, this run may have written over the one that took over. That one
                # takes the lease back with its next beats.
                time.sleep(2 * self._ttl_s / BEATS_PER_TTL)
                if not self._still_mine():
                    return
            self._renewed_at_s = time.monotonic()

    def _still_mine(self) -> bool:
        """Also where a run that this one took over from has woken and written over it."""
        holder = self._read()
        if holder is None:
            self._lost_to = "nobody (lease.json was deleted)"
        elif holder.token != self._mine.token and holder.term >= self._mine.term:
            self._lost_to = str(holder)
        return self._lost_to is None

    def _read(self) -> Holder | None:
        return holder_of(self._store)

    def _encoded(self) -> bytes:
        return json.dumps(asdict(self._mine)).encode()


def holder_of(store: Store) -> Holder | None:
    """Who has the lease of this output, or had it when it died."""
    try:
        return Holder(**json.loads(store.read(NAME)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise OutputError(f"{store.uri}/{NAME} is damaged; delete it once no run is writing here") from None


def _machine() -> str:
    """One boot and one process namespace; "" where the system doesn't tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
