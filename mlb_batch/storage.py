"""Small files on any storage: listed, read, replaced whole, and created only where nothing stands yet.

The one boundary at which foreign storage errors become ours: a refusal (403, no such bucket, disk full) is a JobError
at once, a hiccup (5xx, 409, a reset, a timeout) is tried again with full jitter until patience ends. The client of S3
doesn't try again by itself then: its tries and ours would multiply, to hours on a server that hangs. Those of gs://
and az:// do, each in its own way.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec

from mlb_batch.errors import JobError, OutputError
from mlb_batch.storage_errors import (
    answered,
    error_kind,
    first_line,
    own_patience_s,
    refuses_all,
)
from mlb_batch.web import guarded_client

WEB_PATIENCE_S = 10.0  # a host on the web that is gone may be gone for good
CLIENT_TRIES = 6
ANSWER_S = 10.0  # how long a server may be silent
DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
EXCLUSIVE = {"s3", "s3a", *DRIVERS}  # where of two that create the same name one is told
HIDDEN = ".tmp"  # where a local store writes before it links; readers pass over dotted folders

_T = TypeVar("_T")


class NoFile(OutputError):
    """A folder stands where a file is to be."""


class Store(Protocol):
    """A folder of small files; names are relative to it, with / between folders."""

    uri: str

    def list(self, folder: str) -> list[str]: ...  # the names in it, sorted; empty where there is no such folder
    def sizes(self, folder: str) -> dict[str, int]: ...  # the same names, with how many bytes each has
    def read(self, name: str) -> bytes: ...  # FileNotFoundError where it doesn't exist; NoFile where it is a folder
    def create(self, name: str, data: bytes) -> bool: ...  # False where something stands there already
    def replace(self, name: str, data: bytes) -> None: ...
    def delete(self, name: str) -> None: ...
    def clean(self) -> None: ...  # removes what a killed writer left half written


def open_store(uri: str) -> Store:
    path = local_path(uri)
    return LocalStore(path) if path is not None else RemoteStore(uri)


def scheme_of(uri: str) -> str:
    scheme, separator, _ = uri.partition("://")
    return scheme.lower() if separator else "file"


def local_path(uri: str) -> Path | None:
    """The path that a plain path or a file:// uri names; None for any other storage."""
    if scheme_of(uri) not in ("file", "local"):
        return None
    try:
        path = Path(uri.partition("://")[2] if "://" in uri else uri).expanduser()
    except RuntimeError:  # what pathlib has for it
        raise OutputError(f"{uri}: this machine knows no home folder of that name; write the path in full") from None
    return Path(os.path.normpath(path.absolute()))  # without following links: it is a name


def in_full(uri: str) -> str:
    """A local place as every process finds it, whatever folder it was started in; any other uri as it is."""
    path = local_path(uri)
    return uri if path is None else str(path)


def patience_for(uri: str, most_s: float | None = None) -> float:
    """How long its storage is waited for; a disk of this machine not at all."""
    if local_path(uri) is not None:
        return 0.0
    most_s = own_patience_s() if most_s is None else most_s
    return min(most_s, WEB_PATIENCE_S) if scheme_of(uri) in ("http", "https") else most_s


def join(uri: str, name: str) -> str:
    return f"{uri.rstrip('/')}/{name}"


def filesystem(uri: str, tries: int = 1) -> tuple[Any, str]:
    """The fsspec filesystem of a uri and the path in it. `tries`: of each request by the client of S3, for a call that
    is many requests, as a listing is, or that no patience of ours is around.
    """
    scheme = scheme_of(uri)
    # fsspec keeps a listing for as long as the process lives; others write there too.
    options: dict[str, Any] = {"use_listings_cache": False} if scheme in EXCLUSIVE else {}
    if scheme in ("s3", "s3a"):
        # Older gateways refuse the checksums that newer clients add unasked.
        config = {"connect_timeout": 5, "read_timeout": ANSWER_S, "retries": _retries(tries)}
        config["request_checksum_calculation"] = "when_required"
        options["config_kwargs"] = config
    elif scheme in ("http", "https"):
        options = {"get_client": guarded_client, "client_kwargs": {"answer_s": ANSWER_S}}
    try:
        if scheme in ("s3", "s3a"):
            return _as_it_is(fsspec.filesystem("s3", **options)), uri.partition("://")[2].strip("/")
        return fsspec.core.url_to_fs(uri, **options)
    except ImportError as error:
        driver = DRIVERS.get(scheme)
        remedy = f"{scheme}:// needs the package {driver}: pip install {driver}" if driver else str(error)
        raise OutputError(f"{uri}: can't open this storage: {remedy}") from None
    except (ValueError, OSError) as error:  # some filesystems connect at once
        raise OutputError(f"{uri}: can't open this storage: {error}") from None


def _as_it_is(fs: Any) -> Any:
    """S3 without s3fs's own ideas of trying again, of `?versionId=` in a key, and of how an upload begins."""
    fs.retries = 1
    fs.split_path = partial(_bucket_and_key, type(fs).split_path, fs)
    _never_wait_to_be_asked(fs)
    return fs


def _bucket_and_key(split: Callable[..., tuple[str, str, None]], fs: Any, path: str) -> tuple[str, str, None]:
    """A key is a key, whatever it holds: nothing here ever asks for a version by its path."""
    before, asks, version = path.partition("?versionId=")
    bucket, key, _ = split(fs, before)
    return bucket, key + asks + version, None


def _never_wait_to_be_asked(fs: Any) -> None:
    """Uploads begin at once: a client that waits for the server's "100 Continue" first waits without a time limit."""
    from aiobotocore.session import AioSession  # not needed by who has no bucket
    from botocore.handlers import add_expect_header

    if fs.session is None:  # s3fs would make it with its first request
        fs.session = AioSession(**fs.kwargs)
    fs.session.unregister("before-call.s3", add_expect_header)


def _retries(tries: int) -> dict[str, Any]:
    return {"total_max_attempts": tries, "mode": "standard"}


class LocalStore:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _unreadable(self.root / folder, error) from error

    def sizes(self, folder: str) -> dict[str, int]:
        out = {}
        for name in self.list(folder):
            with suppress(FileNotFoundError):  # it went meanwhile, or is a link to what isn't there
                out[name] = (self.root / folder / name).stat().st_size
        return out

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except IsADirectoryError:
            raise NoFile(f"{self.root / name} is a folder, where a file is to be; move it elsewhere") from None
        except (FileNotFoundError, NotADirectoryError):  # the second: a folder of its path is a file of other hands
            _refuse_what_is_no_folder(self.root)
            raise FileNotFoundError(name) from None
        except OSError as error:
            raise _unreadable(self.root / name, error) from error

    def create(self, name: str, data: bytes) -> bool:
        def link(temporary: Path, final: Path) -> None:
            os.link(temporary, final)

        try:
            self._write(name, data, link)
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        def rename(temporary: Path, final: Path) -> None:
            temporary.replace(final)

        self._write(name, data, rename)

    def delete(self, name: str) -> None:
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise JobError(f"can't delete {self.root / name}: {error.strerror or error}") from error

    def clean(self) -> None:
        for leftover in self.list(HIDDEN):
            self.delete(f"{HIDDEN}/{leftover}")

    def _write(self, name: str, data: bytes, appear: Callable[[Path, Path], None], tries: int = 5) -> None:
        """Write aside, make it durable, and let it appear whole under its name.

        A run that gets the lease cleans up, and so may sweep away what another is about to write: then once more.
        """
        final, temporary = self.root / name, self.root / HIDDEN / uuid.uuid4().hex
        try:
            for folder in (temporary.parent, final.parent):
                _refuse_what_is_no_folder(folder)  # mkdir would say that it exists, as a file does that is created
                folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                appear(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(final.parent)
        except FileExistsError:
            raise
        except FileNotFoundError as error:
            if tries == 1:
                raise JobError(f"can't write {final}: {error.strerror}") from error
            self._write(name, data, appear, tries - 1)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EXDEV):
                message = f"{self.uri}: this disk can't make hard links; use another disk or a bucket"
                raise OutputError(message) from None
            raise JobError(f"can't write {final}: {error.strerror or error}") from error


def _unreadable(path: Path, error: OSError) -> JobError:
    return JobError(f"can't read {path}: {error.strerror or error}")


def _refuse_what_is_no_folder(path: Path) -> None:
    """OutputError where none can be made: a file stands there or above it, or a link to what isn't there."""
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        what = "a file" if nearest.exists() else "a link that leads nowhere (a disk that isn't mounted?)"
        raise OutputError(f"{path} can't be a folder: {nearest} is {what}; mend that, or use another place")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RemoteStore:
    def __init__(self, uri: str) -> None:
        scheme, _, place = uri.partition("://")
        if not place.strip("/"):
            raise OutputError(f"{uri}: names no bucket; write {scheme}://bucket/folder")
        self.uri = uri.rstrip("/")
        self._fs, self._path = filesystem(self.uri)
        self._is_s3 = scheme_of(uri) in ("s3", "s3a")
        if self._is_s3 and self._path.partition("/")[2].startswith("/"):  # s3fs would write there, and list nothing
            raise OutputError(f"{uri}: two slashes stand behind the bucket's name; write one")

    def list(self, folder: str) -> list[str]:
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        path = f"{self._path}/{folder}".rstrip("/")
        try:
            found = self._patiently(lambda: self._fs.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        # A "folder" that was made by hand lists itself.
        names = {one["name"].rstrip("/"): one["size"] or 0 for one in found}
        return {name.rsplit("/", 1)[-1]: size for name, size in names.items() if name != path}

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._patiently(lambda: self._fs.cat_file(f"{self._path}/{name}")))
        except JobError as error:
            if not self._only_missing(name, error.__cause__):
                raise
            raise FileNotFoundError(name) from None

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._put(name, data, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        self._put(name, data, mode="overwrite")

    def delete(self, name: str) -> None:
        try:
            self._patiently(lambda: self._fs.rm_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            return

    def clean(self) -> None:
        """A put is whole or absent; nothing is ever left half written."""

    def _only_missing(self, name: str, cause: BaseException | None) -> bool:
        """S3 forbids what isn't there to whom it lets list no more than a folder; a listing of that one name knows."""
        if not self._is_s3 or cause is None or error_kind(cause) != "refused" or refuses_all(cause):
            return False
        bucket, _, key = f"{self._path}/{name}".partition("/")
        asked = {"Bucket": bucket, "Prefix": key, "MaxKeys": 1}
        found = self._patiently(lambda: self._fs.call_s3("list_objects_v2", **asked))
        return all(one["Key"] != key for one in found.get("Contents", ()))

    def _put(self, name: str, data: bytes, mode: str) -> None:
        if scheme_of(self.uri) not in EXCLUSIVE:
            raise OutputError(f"{self.uri}: nothing is written there; use a folder, s3://, gs:// or az://")
        # Conditions bind single puts only (some servers ignore them on multipart uploads): never let a put be split.
        options = {"chunksize": max(len(data), 1 << 20)} if self._is_s3 else {}
        try:
            self._patiently(lambda: self._fs.pipe_file(f"{self._path}/{name}", data, mode=mode, **options))
        except FileNotFoundError as error:
            raise JobError(f"{self.uri}: no such bucket or container: {first_line(error)}") from error

    def _patiently(self, call: Callable[[], _T]) -> _T:
        return answered(self.uri, call, own_patience_s())
