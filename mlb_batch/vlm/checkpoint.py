"""Where a model's files are: resolves an id to a local folder and to a revision that says exactly which weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mlb_batch import tiny
from mlb_batch.cache import made_once
from mlb_batch.cost.shapes import ModelShape, model_shape
from mlb_batch.errors import JobError, ModelError
from mlb_batch.storage import filesystem, local_path
from mlb_batch.storage_errors import status_of
from mlb_batch.stored_file import StoredFile, asked

_EMBEDDED = "embedded:"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
_CONTENT = (".safetensors", ".json", ".jinja", ".model", ".txt")
# What the listings of one or the other filesystem say of a file's version.
_VERSION = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
# What a hub download brings: weights that carry no code, and the small files beside them.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
_COPIED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    name: str  # as the job wrote it
    folder: Path
    config: dict[str, Any]
    revision: str  # the hub's commit, or a hash of the folder's content: goes into the fingerprint

    @property
    def shape(self) -> ModelShape:
        try:
            return model_shape(self.config)
        except ModelError as error:
            raise ModelError(f"model.id: {self.name!r}: {error}") from None

    @property
    def vision_size(self) -> int:
        return self.shape.vision.image_size


def resolve(id: str, revision: str = "main", key: str = "model.id") -> Checkpoint:
    """embedded:tiny | a local folder | an fsspec uri | a hub id, which stands at `key` in the job."""
    try:
        return _found(id, revision)
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from None


def _found(id: str, revision: str) -> Checkpoint:
    if id.startswith(_EMBEDDED):
        return _local(id, tiny.folder(id.removeprefix(_EMBEDDED)))
    if "://" in id:
        return _local(id, _downloaded(id))
    if (folder := local_path(id)) is not None and folder.is_dir():
        return _local(id, folder)
    if id.startswith((".", "/", "~")) or id.count("/") != 1:
        raise ModelError(f"{id!r} is no folder here; give a folder, an fsspec uri or a hub id (owner/name)")
    return _from_hub(id, revision)


def _local(name: str, folder: Path) -> Checkpoint:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{name!r} holds no config.json; point at a transformers checkpoint folder")
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in _PICKLED]
        found = f" (it has {', '.join(pickled)}: pickled weights can run code and are refused)" if pickled else ""
        raise ModelError(f"{name!r} holds no .safetensors weights{found}; convert them to safetensors")
    if not any((folder / weights).is_file() for weights in ("model.safetensors", _INDEX)):
        raise ModelError(f"{name!r} holds neither model.safetensors nor {_INDEX}; give the weights that name")
    _refuse_damaged(name, folder)
    return Checkpoint(name, folder, read_json(config), _content_hash(folder))


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
    """Over every file that can change the text; the weights stand in with size and bytes, read once."""
    digest = hashlib.sha256()
    named = sorted(p for p in folder.iterdir() if p.suffix in _CONTENT)
    for path in [*named, *sorted(folder.glob("additional_chat_templates/*.jinja"))]:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _downloaded(uri: str) -> Path:
    """A remote folder, copied once a machine; the listing's sizes and versions are its name, so a new one is new."""
    fs, root = filesystem(uri)
    try:
        listed = asked(uri, lambda: fs.ls(root, detail=True))
        found = [f for f in listed if f["type"] == "file" and not f["name"].endswith(_PICKLED)]
        listing = sorted((f["name"], f["size"], *(str(f.get(key)) for key in _VERSION)) for f in found)
        if listing:
            digest = hashlib.sha256(repr((uri, listing)).encode()).hexdigest()[:16]
            return made_once("models", digest, lambda folder: _copy(uri, fs, [name for name, *_ in listing], folder))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ModelError(f"{uri} can't be fetched: {error}; check the room in the cache") from None
    raise ModelError(f"nothing is at {uri}; give the folder that holds config.json")


def _copy(uri: str, fs: Any, names: Sequence[str], folder: Path) -> None:
    for name in names:
        with StoredFile(uri, fs, name) as file, (folder / Path(name).name).open("wb") as copy:
            shutil.copyfileobj(file, copy, _COPIED_AT_ONCE)


def _from_hub(id: str, revision: str) -> Checkpoint:
    """Downloaded once a machine; the commit that `revision` names now is what the job means from then on."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=_WANTED))
    except (OSError, ValueError) as error:  # ValueError: it is no hub id
        status = status_of(error)
        said = f"{id!r} is no folder here, and the hub did not give it: {' '.join(str(error).split())[:300]}"
        if status is not None and (status == 429 or status >= 500):
            raise JobError(f"{said}; run the same command again to resume") from error
        raise ModelError(said) from error  # also where no hub can be reached: as likely a name that is no folder
    found = _local(id, folder)
    return Checkpoint(id, folder, found.config, folder.name)  # snapshots are named by their commit
