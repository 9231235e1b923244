"""Where a model's files are: resolves an id to a local folder and to a revision that says exactly which weights."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mlb_batch import tiny
from mlb_batch.cache import made_once
from mlb_batch.cost.shapes import Config, ModelShape, model_shape, paired_shape
from mlb_batch.errors import ModelError
from mlb_batch.storage import filesystem, local_path
from mlb_batch.storage_errors import first_line
from mlb_batch.stored_file import StoredFile, asked
from mlb_batch.vlm.hub import snapshot

_EMBEDDED = "embedded:"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
_CONTENT = (".safetensors", ".json", ".jinja", ".model", ".txt")
# What one or the other filesystem says of a file's version.
_VERSION = (
    "size", "ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "Last-Modified", "updated",
    "created",
)  # fmt: skip
_COPIED_AT_ONCE = 1 << 22
# What a config must have, by the key of the job that names its checkpoint.
_SHAPE_AT: dict[str, Callable[[Config], object]] = {"model.id": model_shape, "prune.feature_model": paired_shape}


@dataclass(frozen=True)
class Checkpoint:
    name: str  # as the job wrote it
    folder: Path
    config: dict[str, Any]
    revision: str  # the hub's commit, or a hash of the folder's content: goes into the fingerprint

    @property
    def shape(self) -> ModelShape:
        return model_shape(self.config)

    @property
    def vision_size(self) -> int:
        return self.shape.vision.image_size


def resolve(id: str, revision: str = "main", key: str = "model.id") -> Checkpoint:
    """embedded:tiny | a local folder | an fsspec uri | a hub id, which stands at `key` in the job."""
    try:
        return _found(id, revision, _SHAPE_AT[key])
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from None


def _found(id: str, revision: str, shape_of: Callable[[Config], object]) -> Checkpoint:
    if id.startswith(_EMBEDDED):
        return _local(id, tiny.folder(id.removeprefix(_EMBEDDED)), shape_of)
    if page := re.match(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)", id):
        raise ModelError(f"{id} is a page for people; write {page[1]}")
    if "://" in id:
        return _local(id, _downloaded(id), shape_of)
    if (folder := local_path(id)) is not None and folder.is_dir():
        return _local(id, folder, shape_of)
    if id.startswith((".", "/", "~")) or id.count("/") != 1:
        raise ModelError(f"{id!r} is no folder here; give a folder, an fsspec uri or a hub id (owner/name)")
    folder = snapshot(id, revision, lambda small: _config(id, small, shape_of))
    _refuse_incomplete(id, folder)
    config = _config(id, folder, shape_of)
    return Checkpoint(id, folder, config, folder.name)  # the commit says which content: none is hashed


def _local(name: str, folder: Path, shape_of: Callable[[Config], object]) -> Checkpoint:
    config = _config(name, folder, shape_of)
    _refuse_incomplete(name, folder)
    return Checkpoint(name, folder, config, _content_hash(folder))


def _config(name: str, folder: Path, shape_of: Callable[[Config], object]) -> dict[str, Any]:
    """One whose shape is known here: what is not is refused before anything else is read."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{name!r} holds no config.json; point at a transformers checkpoint folder")
    config = read_json(path)
    try:
        shape_of(config)
    except ModelError as error:
        raise ModelError(f"{name!r}: {error}") from None
    return config


def _refuse_incomplete(name: str, folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in _PICKLED]
        seen = f"it has {', '.join(pickled)}: pickled weights" if pickled else "pickled ones, such as .bin,"
        raise ModelError(
            f"{name!r} holds no .safetensors weights ({seen} can run code and are refused); convert them to safetensors"
        )
    if not any((folder / weights).is_file() for weights in ("model.safetensors", _INDEX)):
        raise ModelError(f"{name!r} holds neither model.safetensors nor {_INDEX}; give the weights that name")
    _refuse_damaged(name, folder)


def read_json(path: Path) -> dict[str, Any]:
    """One of a checkpoint's own files."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path}: this is not JSON ({error}); copy the checkpoint again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: this is no object in JSON; copy the checkpoint again")
    return value


def _refuse_damaged(name: str, folder: Path) -> None:
    """By the weights' headers, before anything is held: the captioners would find out one after the other."""
    index = folder / _INDEX
    listed = read_json(index).get("weight_map") if index.is_file() else {}
    if not isinstance(listed, dict):
        raise ModelError(f"{index}: its weight_map is no object; copy the checkpoint again")
    if missing := sorted(file for file in set(listed.values()) if not (folder / str(file)).is_file()):
        raise ModelError(f"{name!r} has no {missing[0]}, which its index lists; copy the checkpoint again")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise ModelError(f"{name!r}: {path.name} is damaged ({error}); copy it again") from None


def _content_hash(folder: Path) -> str:
    """Over every file that can change the text."""
    named = sorted(p for p in folder.iterdir() if p.suffix in _CONTENT)
    paths = [*named, *sorted(folder.glob("additional_chat_templates/*.jinja"))]
    stats = [path.stat() for path in paths]
    return _hashed(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)))


@lru_cache
def _hashed(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read once a process, as long as (path, bytes, mtime_ns) of every file stand: weights are gigabytes, and one job
    resolves its models many times.
    """
    digest = hashlib.sha256()
    for path, num_bytes, _ in files:
        digest.update(f"{path.name}\0{num_bytes}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _downloaded(uri: str) -> Path:
    """A remote folder, copied once a machine; its files' sizes and versions are its name, so a new one is new."""
    fs, root = filesystem(uri)
    try:
        if listing := _listing(uri, fs, root):
            digest = hashlib.sha256(repr((uri, listing)).encode()).hexdigest()[:16]
            return made_once("models", digest, lambda folder: _copy(uri, fs, [name for name, *_ in listing], folder))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ModelError(f"{uri} can't be fetched: {error}; check the room in the cache") from None
    except ValueError as error:  # a web server that gives no parts of a file, for instance
        said = first_line(error).partition(". ")[0]
        raise ModelError(f"{uri} can't be fetched: {said}; name a copy in a folder or a bucket") from None
    raise ModelError(f"nothing is at {uri}; give the folder that holds config.json")


def _listing(uri: str, fs: Any, root: str) -> list[tuple[str, ...]]:
    """Of each file its name, and what tells a new version of it; nothing where this is no checkpoint, but a page."""
    listed = asked(uri, lambda: fs.ls(root, detail=True))
    files = [one for one in listed if one["type"] == "file" and not one["name"].endswith(_PICKLED)]
    beside = (Path(root).name, "config.json")
    if not any((Path(one["name"]).parent.name, Path(one["name"]).name) == beside for one in files):
        return []
    return sorted((one["name"], *_version(uri, fs, one)) for one in files)


def _version(uri: str, fs: Any, listed: dict[str, Any]) -> list[str]:
    """By its listing, or by asking for it where listings are no more than names, as on the web."""
    known = listed if _told(listed) else asked(uri, lambda: fs.info(listed["name"]))
    if not _told(known):
        raise ModelError(
            f"{uri}: its server says neither the size nor the version of {Path(listed['name']).name}, so a new one "
            "would never be seen; name a copy in a folder or a bucket"
        )
    return [str(known.get(key)) for key in _VERSION]


def _told(info: dict[str, Any]) -> bool:
    return any(info.get(key) is not None for key in _VERSION)


def _copy(uri: str, fs: Any, names: Sequence[str], folder: Path) -> None:
    for name in names:
        with StoredFile(uri, fs, name) as file, (folder / Path(name).name).open("wb") as copy:
            shutil.copyfileobj(file, copy, _COPIED_AT_ONCE)
