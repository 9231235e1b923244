"""A glob or a prefix as a list of uris.

A glob takes what it matches, whatever its name. A prefix takes every file below it that is named like a video, so that
a README or thumbnails beside the videos are no errors (an .ogg is sound, as a rule). The names are held in memory
(storage lists them so): beyond some hundred thousand files a manifest is the better input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlb_batch.errors import InputError
from mlb_batch.source.links import LinkedDisk
from mlb_batch.source.uris import UriPolicy, is_glob
from mlb_batch.spec_parts import InputSpec
from mlb_batch.storage import CLIENT_TRIES, filesystem, in_full, scheme_of
from mlb_batch.storage_errors import root_line
from mlb_batch.stored_file import asked

# fmt: off
VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".flv", ".3gp", ".3g2",
    ".gif", ".wmv", ".asf", ".ogv", ".mxf", ".vob", ".rm", ".rmvb", ".dv", ".ivf",
)
# fmt: on


def video_uris(given: InputSpec, output: str = "") -> list[str]:
    """Sorted, without what lies below the job's own output; InputError where there are none."""
    assert given.videos is not None
    place = in_full(given.videos)
    listed = _listed(place, given)
    uris = [uri for uri in listed if not (output and uri.startswith(f"{output}/"))]
    if listed and not uris:
        remedy = "give the output a folder that holds no videos"
        raise InputError(f"input.videos: {given.videos}: all {len(listed)} files lie below the output; {remedy}")
    if not uris:
        raise InputError(f"input.videos: {given.videos}: no video is there; {_remedy(place)}")
    return uris


def _remedy(place: str) -> str:
    if is_glob(place):
        signs = " (in a pattern [abc] is one of three signs, and [[] a bracket)" if "[" in place else ""
        return f"check the path{signs}"
    if place.startswith("/") and Path(place).is_file():
        return "its name ends like no video's; name it in a manifest"
    return f"check the path, or list {place.rstrip('/')}/** for files of any name"


def _listed(place: str, given: InputSpec) -> list[str]:
    """What its file system names there, as uris of the kind that the place has."""
    if place.startswith("/"):
        disk = LinkedDisk(UriPolicy.of(given).allows)
        return sorted([*disk.once(_names(disk, place, place)), *disk.shut])
    fs, path = filesystem(place, CLIENT_TRIES)
    return [name if "://" in name else f"{scheme_of(place)}://{name.lstrip('/')}" for name in _names(fs, path, place)]


def _names(fs: Any, path: str, place: str) -> list[str]:
    try:  # fsspec's own walk passes over a folder that it can't list
        if is_glob(place):
            found = asked(place, lambda: fs.glob(path, detail=True))
            return sorted(name for name, info in found.items() if info["type"] != "directory")
        return sorted(name for name in asked(place, lambda: fs.find(path)) if name.lower().endswith(VIDEO_ENDINGS))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"input.videos: {place}: can't be listed: {root_line(error)}") from None
