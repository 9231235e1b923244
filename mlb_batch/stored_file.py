"""A file that is read as it comes (a manifest, a model's weights), wherever it is stored: every request for it waits
out an outage, as those for an output's files do.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

from mlb_batch.storage import local_path, patience_for
from mlb_batch.storage_errors import answered

_T = TypeVar("_T")


def asked(uri: str, call: Callable[[], _T]) -> _T:
    """What its storage answers. OSError where nothing is there or a disk of this machine refuses, which the user can
    mend; JobError where storage elsewhere refuses, or doesn't answer well for as long as it is waited for.
    """
    return call() if local_path(uri) is not None else answered(uri, call, patience_for(uri))


def version_by(info: dict[str, Any]) -> str:
    """What changes when a file's content does, by what its file system says of it: stores name the etag differently;
    one without it at least knows size and time.
    """
    for key in ("ETag", "etag", "md5Hash", "content_settings"):
        if info.get(key):
            return str(info[key]).strip('"')
    times = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")
    changed = next((info[key] for key in times if key in info), "")
    return f"{changed}-{info.get('size')}"


class StoredFile(io.RawIOBase):
    """One of a file system's files; what was read of it before an outage is not read again."""

    def __init__(self, uri: str, fs: Any, path: str) -> None:
        self._uri = uri
        self._file = asked(uri, lambda: fs.open(path, "rb"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(asked(self._uri, lambda: self._file.readinto(buffer)))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
