"""Which uris may be opened. A manifest is other people's data: every uri in it is checked before anything is opened.

A uri must be, or lie under, a prefix of `input.allow`, by whole path components (default: the bucket, or the folder,
that the manifest itself or the glob lies in; nothing for http, which has to be allowed by name). So a host, a scheme or
a bucket that nobody named is never contacted, whatever way it is written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlb_batch.errors import InputError, RowError
from mlb_batch.spec_parts import InputSpec, is_shipped
from mlb_batch.storage import in_full, local_path, scheme_of
from mlb_batch.web import is_metadata

MOST_CHARS = 4096
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HERE = re.compile(r"^(\./+)+")  # as `find .` begins its names; in a bucket it would be part of the key
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")


class UriPolicy:
    """Where relative uris start, and what may be opened."""

    def __init__(self, base: str, allow: tuple[str, ...]) -> None:
        self._base = base
        self._folders = [os.path.realpath(path) for path in map(local_path, allow) if path is not None]
        self._prefixes = [f"{_canonical(one).rstrip('/')}/" for one in allow if local_path(one) is None]

    @staticmethod
    def of(spec: InputSpec) -> UriPolicy:
        base = base_of(spec)
        return UriPolicy(base, spec.allow if spec.allow is not None else default_allow(base))

    def resolve(self, uri: str) -> str:
        """The absolute form of an allowed uri; RowError("forbidden") for any other."""
        problem = _suspicious(uri)
        if problem:
            raise RowError("forbidden", f"{_shown(uri)}: {problem}")
        absolute = self._absolute(uri)
        if is_shipped(absolute):
            raise InputError(f"{absolute} lies in Ray's copy of the working directory, where each submission would "
                             "find new videos, and annotate them anew; give uris or absolute paths")  # fmt: skip
        if not self.allows(absolute):
            raise RowError("forbidden", f"{_shown(uri)}: not under any prefix of input.allow")
        return absolute

    def _absolute(self, uri: str) -> str:
        if _HAS_SCHEME.match(uri):
            return _canonical(uri)
        path = uri if uri.startswith("/") else f"{self._base}/{_HERE.sub('', uri)}"
        return path if _HAS_SCHEME.match(path) else os.path.normpath(re.sub("/+", "/", path))

    def allows(self, absolute: str) -> bool:
        """Whether it is, or lies under, an allowed prefix."""
        if _HAS_SCHEME.match(absolute) and scheme_of(absolute) not in ("file", "local"):
            return any(f"{absolute}/".startswith(prefix) for prefix in self._prefixes)
        path = absolute.partition("://")[2] if "://" in absolute else absolute
        # Links are followed before the comparison: a link that leads out of the folder is as forbidden as its target.
        real = os.path.realpath(path)
        return path.startswith("/") and any(f"{real}/".startswith(f"{one.rstrip('/')}/") for one in self._folders)


def anchored(given: InputSpec) -> InputSpec:
    """With its local places in full."""
    places = {name: in_full(uri) for name in ("manifest", "videos") if (uri := getattr(given, name)) is not None}
    allow = None if given.allow is None else tuple(map(in_full, given.allow))
    return given.model_copy(update={**places, "allow": allow})


def base_of(spec: InputSpec) -> str:
    """The folder of the manifest, or of the glob before its first pattern; absolute."""
    uri = spec.manifest if spec.manifest is not None else spec.videos
    assert uri is not None
    text = in_full(uri)
    if spec.manifest is None:
        if not is_glob(text):
            return text.rstrip("/")
        text = re.split(r"[*?\[]", text, maxsplit=1)[0]
    return text.rpartition("/")[0]


def is_glob(place: str) -> bool:
    """A local file or folder is taken by its name, whatever that holds."""
    return re.search(r"[*?\[]", place) is not None and not (place.startswith("/") and Path(place).exists())


def default_allow(base: str) -> tuple[str, ...]:
    scheme = scheme_of(base)
    if scheme in ("http", "https"):
        return ()
    if scheme == "file":
        return (base or "/",)
    bucket = base.partition("://")[2].partition("/")[0]
    return (f"{scheme}://{bucket}/",)


def _canonical(uri: str) -> str:
    """Scheme in small letters, and for http the host too."""
    scheme, separator, rest = uri.partition("://")
    if scheme.lower() in ("http", "https"):
        host, slash, path = rest.partition("/")
        rest = host.lower() + slash + path
    return scheme.lower() + separator + rest


def _suspicious(uri: str) -> str | None:
    """What no uri may hold, whatever is allowed."""
    if not uri or len(uri) > MOST_CHARS:
        return f"a uri has 1 to {MOST_CHARS} characters"
    if _CONTROL.search(uri):
        return "control characters"
    if "\\" in uri:
        return "backslashes"
    if "::" in uri:
        return "chained storage (::)"
    scheme = _HAS_SCHEME.match(uri)
    if scheme and not uri.startswith("//", scheme.end()):
        return "a scheme without //"
    if scheme_of(uri) in ("http", "https"):
        try:
            host = urlsplit(uri).netloc
        except ValueError:
            return "no web address"
        if "@" in host:
            return "a user name in the host"
        if is_metadata(host):
            return "a link-local address"
    plain = uri
    for _ in range(3):  # %252e is %2e to whoever decodes twice
        if ".." in re.split(r"[/\\]", plain):
            return "a step to the folder above (..)"
        if "%" not in plain:
            break
        plain = unquote(plain)
    return None


def _shown(uri: str) -> str:
    text = ascii(uri)
    return text if len(text) <= 200 else f"{text[:197]}..."
