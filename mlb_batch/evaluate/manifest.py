"""Items -> the manifest that all cells of an evaluation run over, and where its videos are.

Asked alone, every question is a row of its own, with a prefill of its own: that is how benchmarks are published, and a
ratio then means what it means there. Asked together, a clip is one row with all its questions, as in a user's job.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from mlb_batch.errors import InputError, RowError
from mlb_batch.evaluate.benchmarks import BENCHMARKS, WORLDS
from mlb_batch.evaluate.formats import read_files
from mlb_batch.evaluate.items import Item
from mlb_batch.evaluate.spec import EvalSpec
from mlb_batch.evaluate.world import Say, folder_of, write_world
from mlb_batch.source.listing import VIDEO_ENDINGS
from mlb_batch.source.uris import UriPolicy
from mlb_batch.storage import Store, in_full, join, open_store, scheme_of


@dataclass(frozen=True)
class Prepared:
    """What is asked, the folder of its videos, and which of them aren't in there, as far as it can be listed."""

    items: list[Item]
    videos: str
    missing: frozenset[str] = frozenset()

    @property
    def there(self) -> list[Item]:
        return [item for item in self.items if item.video not in self.missing]


def videos_folder(spec: EvalSpec, store: Store) -> str:
    """Where the videos are, or will be once they are made."""
    given = spec.benchmark
    if given.name in WORLDS:
        return join(store.uri, folder_of(given.name, given.world))
    assert given.videos is not None
    return in_full(given.videos).rstrip("/") or "/"


def prepared(spec: EvalSpec, store: Store, videos: str, say: Say) -> Prepared:
    """The videos of a world stand in the store then."""
    given = spec.benchmark
    if given.name in WORLDS:
        found = Prepared(write_world(store, given.name, given.world, say), videos)
    else:
        found = _public(spec, videos)
    if given.limit is not None:
        found = replace(found, items=_limited(found, given.limit))
    _check(found.items)
    return found


def written_manifest(spec: EvalSpec, store: Store, given: Prepared) -> str:
    """Its uri. It is called by what it holds: no other evaluation can change what one at work goes on to ask."""
    rows = (_alone if spec.asked == "alone" else _together)(given.items, given.videos)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = f"manifest-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    store.create(name, content)
    return join(store.uri, name)


def _public(spec: EvalSpec, videos: str) -> Prepared:
    items = list(BENCHMARKS[spec.benchmark.name].items(read_files(spec.benchmark.annotations)))
    if not items:
        files = ", ".join(BENCHMARKS[spec.benchmark.name].files)
        raise InputError(f"benchmark.annotations: no question is in them; {spec.benchmark.name} is read from {files}")
    if scheme_of(videos) in ("http", "https"):  # a web server need not list what it has
        return Prepared([replace(item, video=_with_ending(item.video)) for item in items], videos)
    names = _Names(videos)
    found = [replace(item, video=names.file(item.video)) for item in items]
    every = {item.video for item in found}
    if every == names.missing:
        one = found[0].video
        raise InputError(f"benchmark.videos: none of {len(every):,} videos is in {videos}; {one} should be, for one")
    _refuse_links_out(spec, videos, every - names.missing)
    return Prepared(found, videos, frozenset(names.missing))


def _refuse_links_out(spec: EvalSpec, videos: str, there: Iterable[str]) -> None:
    """As a download's cache has them: every video would be refused, one after the other."""
    policy = UriPolicy(videos, spec.benchmark.allowed(videos))

    def opens(video: str) -> bool:
        try:
            return bool(policy.resolve(f"{videos}/{video}"))
        except RowError:
            return False

    if not any(map(opens, there)):
        raise InputError(
            f"benchmark.videos: what lies in {videos} leads elsewhere, {min(there)} for one; name in benchmark.allow "
            "the folder that the links lead to"
        )


class _Names:
    """Files by what benchmarks call them, which is often without the ending that a download gave them."""

    def __init__(self, videos: str) -> None:
        self._videos = videos
        self._by_name: dict[str, dict[str, str]] = {}
        self.missing: set[str] = set()

    def file(self, video: str) -> str:
        """The file's name below the folder; where there is none, the name that is missing."""
        folder, _, name = video.rpartition("/")
        if ".." not in PurePosixPath(video).parts:  # which is refused when it is opened, like any path that leaves
            if folder not in self._by_name:
                there = open_store(join(self._videos, folder) if folder else self._videos).list("")
                self._by_name[folder] = _by_name(there)
            if found := self._by_name[folder].get(name):
                return f"{folder}/{found}" if folder else found
        lost = _with_ending(video)
        self.missing.add(lost)
        return lost


def _with_ending(video: str) -> str:
    return video if PurePosixPath(video).suffix else f"{video}.mp4"


def _by_name(names: Sequence[str]) -> dict[str, str]:
    """Videos by their full names and by those without their endings; of two the one whose ending comes first there.

    Beside them lie subtitles, sound and pictures, and a folder of a video's frames may be called just as it is: what
    has another ending, or none, is only found where no video has its name.
    """
    by_ending = ((one, ending) for ending in reversed(VIDEO_ENDINGS) for one in names)
    videos = [one for one, ending in by_ending if one.lower().endswith(ending)]
    by_stem = {PurePosixPath(one).stem: one for one in videos}
    return {one: one for one in names} | by_stem | {one: one for one in videos}


def _limited(found: Prepared, videos: int) -> list[Item]:
    """All questions of some videos by chance, always the same ones, and more of them keep the fewer. What is missing
    comes last: a small look is to show something.
    """

    def place(video: str) -> tuple[bool, bytes]:
        return video in found.missing, hashlib.sha256(f"0:{video}".encode()).digest()

    kept = set(sorted({item.video for item in found.items}, key=place)[:videos])
    return [item for item in found.items if item.video in kept]


def _check(items: Iterable[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InputError(f"benchmark.annotations: the question id {item.id!r} stands twice; is a file named twice?")
        seen.add(item.id)


def _alone(items: Iterable[Item], videos: str) -> Iterable[dict[str, Any]]:
    return (_row(item.id, f"{videos}/{item.video}", [item]) for item in items)


def _together(items: Iterable[Item], videos: str) -> Iterable[dict[str, Any]]:
    of_video: dict[str, list[Item]] = {}
    for item in items:
        of_video.setdefault(item.video, []).append(item)
    return (_row(video, f"{videos}/{video}", some) for video, some in of_video.items())


def _row(row_id: str, uri: str, items: Sequence[Item]) -> dict[str, Any]:
    return {
        "id": row_id,
        "uri": uri,
        "questions": [_asked(item) for item in items if item.kind != "caption"],
        "captions": [_asked(item) for item in items if item.kind == "caption"],
    }


def _asked(item: Item) -> dict[str, Any]:
    asked: dict[str, Any] = {"id": item.id, "question": item.prompt}
    return asked if item.shaped else {**asked, "choices": list(item.choices)}
