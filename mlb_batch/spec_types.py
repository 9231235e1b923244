"""The kinds of values in a job file, each with the words for what it must be."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from mlb_batch.storage import EXCLUSIVE, scheme_of

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WEEK_S = 7 * 24 * 3600  # that nobody waits for; the system's timers, some of which count milliseconds, still hold it
Seconds = Annotated[float, Field(gt=0, le=WEEK_S, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
LEAST_OF_RAY = 1e-4  # it counts resources in ten-thousandths
Cpus = Annotated[float, Field(ge=LEAST_OF_RAY, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Texts = Annotated[tuple[Name, ...], Field(strict=False)]
_NO_HOST = ("", "file", "local", "memory")


def _place(uri: str) -> str:
    """An empty ${BUCKET} would make a bucket of the folder's name, and a password be a part of every row's uri."""
    scheme, separator, rest = uri.partition("://")
    host = rest.partition("/")[0]
    if separator and not host and scheme.lower() not in _NO_HOST:
        raise ValueError(f"must name a bucket or a host behind {scheme}://")
    if scheme.lower() in ("http", "https") and "@" in host:
        raise ValueError("must hold no user name or password: a uri is written into every row")
    return uri


def _folder(uri: str) -> str:
    """`s3:/bucket` would be a folder here; a web server is no place to write, as the first commit would find."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]+:(?!//)", uri):
        raise ValueError(f"has a scheme without //; write it like s3://bucket/prefix, or a folder as ./{uri}")
    if scheme_of(uri) not in ("file", "local", *EXCLUSIVE):
        raise ValueError("nothing is written there; use a folder, s3://, gs:// or az://")
    return uri


Uri = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_place)]
Output = Annotated[Uri, AfterValidator(_folder)]


def _bounds(value: object) -> object:
    """A pool's size: one number, or [least, most]."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    numbers = isinstance(value, list | tuple) and [type(v) for v in value] == [int, int]
    if not numbers or not 1 <= value[0] <= value[1]:  # type: ignore[index]
        raise ValueError("must be a whole number from 1, or [least, most]")
    return tuple(value)  # type: ignore[arg-type]


def _bounds_or_auto(value: object) -> object:
    if value == "auto":
        return value
    try:
        return _bounds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def _count_or_auto(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("must be a whole number from 1, or auto")


def _of_one_gpu(value: object) -> object:
    """Several captioners may share a card, and no captioner computes on several."""
    if type(value) in (int, float) and (value == 0 or LEAST_OF_RAY <= value <= 1):  # type: ignore[operator]
        return value
    raise ValueError(f"must be 0, or from {LEAST_OF_RAY} to 1: a captioner computes on one GPU, or on a share of it")


GpuShare = Annotated[
    float,
    BeforeValidator(_of_one_gpu),
    WithJsonSchema({"anyOf": [{"const": 0}, {"type": "number", "minimum": LEAST_OF_RAY, "maximum": 1}]}),
]
_COUNT_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 1}
_PAIR_SCHEMA: dict[str, Any] = {"type": "array", "items": _COUNT_SCHEMA, "minItems": 2, "maxItems": 2}
_AS_LIST = PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value)
Bounds = Annotated[
    tuple[int, int],
    Field(strict=False),
    BeforeValidator(_bounds),
    _AS_LIST,
    WithJsonSchema({"anyOf": [_COUNT_SCHEMA, _PAIR_SCHEMA]}),
]
BoundsOrAuto = Annotated[
    tuple[int, int] | Literal["auto"],
    BeforeValidator(_bounds_or_auto),
    _AS_LIST,
    WithJsonSchema({"anyOf": [{"const": "auto"}, _COUNT_SCHEMA, _PAIR_SCHEMA]}),
]
CountOrAuto = Annotated[
    int | Literal["auto"],
    BeforeValidator(_count_or_auto),
    WithJsonSchema({"anyOf": [{"const": "auto"}, _COUNT_SCHEMA]}),
]
