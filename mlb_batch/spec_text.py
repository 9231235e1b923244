"""The text around a job file: YAML without its traps, settings, ${ENV}, templates, and errors a person can act on."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from mlb_batch.errors import SpecError

MOST_COMPARED = 10_000  # names of a manifest's columns, which may be any number


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `yes` and `no` stay words (they are choices), 1e9 is a number, dates stay text."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.deep_construct = True  # what holds itself is an error then

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                problem = "a key that is no plain word; quote a text that begins with { or ["
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_SCALARS = {
    "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "int": (r"^[-+]?[0-9]+(?:_[0-9]+)*$", "-+0123456789"),
    "float": (r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
}
_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


class _Dumper(yaml.SafeDumper):
    """Quotes what one or the other version of YAML would take for more than a word."""


for _tag, (_pattern, _first) in _SCALARS.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def dump_yaml(data: dict[str, Any]) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: it makes plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"{where}{line}: not valid YAML: {problem}") from None
    except (ValueError, KeyError) as error:  # a !!tag over what is none of its kind, or a number of 5,000 digits
        raise SpecError(f"{where}: not valid YAML: {error}") from None
    except RecursionError:
        raise SpecError(f"{where}: not valid YAML: it is nested too deep, or holds itself") from None


# Each kind of file: the keys that the other has not, and its command.
_KINDS = {
    "a job file": (("input", "prompts"), "mlb-batch run"),
    "an evaluation file": (("benchmark", "methods", "bias"), "mlb-batch evaluate"),
}


def read(path: Path, sets: Iterable[str], kind: str = "a job file") -> dict[str, Any]:
    """A YAML file, with `key.sub=value` settings applied over it."""
    data = _read_yaml(path, kind)
    for setting in [sets] if isinstance(sets, str) else sets:
        _apply_setting(data, setting)
    return data


def _read_yaml(path: Path, kind: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file; {kind} is wanted") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: can't be read: {error}") from None
    data, own = parse_yaml(text, str(path)), _KINDS[kind][0]
    if not isinstance(data, dict):
        raise SpecError(f"{path}: {kind} is a mapping of keys like {', '.join(own)} and output")
    for other, (keys, command) in _KINDS.items():
        if data.keys() & keys and not data.keys() & own:
            raise SpecError(f"{path}: this is {other}; use {command}")
    return data


def _apply_setting(data: dict[str, Any], setting: str) -> None:
    """Set `key.sub=value` in place; the value is YAML, a number steps into a list."""
    path, equals, value = setting.partition("=")
    steps = path.split(".")
    if not equals or not all(steps):
        raise SpecError(f"--set {setting}: write it as key.sub=value, like --set budget.ratio=0.4")
    at: Any = data
    for depth, step in enumerate(steps[:-1]):
        at = _step_into(at, step, ".".join(steps[: depth + 1]), setting)
    at[_place(at, steps[-1], path, setting)] = parse_yaml(value, f"--set {setting}")


# What stands for a whole part where it is plain text, in a job file or an evaluation file, or in a list of that name.
_SHORT_FORMS = {"output": "uri", "model": "id", "models": "id", "methods": "method", "benchmark": "name"}


def _step_into(at: Any, step: str, path: str, setting: str) -> Any:
    in_list = isinstance(at, list)
    place = _place(at, step, path, setting)
    inner = at[place] if in_list else at.get(place)
    key = path.rpartition(".")[0] if in_list else path
    if inner is None:
        inner = {}
    elif isinstance(inner, str) and key in _SHORT_FORMS:
        inner = {_SHORT_FORMS[key]: inner}
    if not isinstance(inner, dict | list):
        raise SpecError(f"--set {setting}: {path} is a plain value, it has no keys below it")
    at[place] = inner
    return inner


def _place(at: Any, step: str, path: str, setting: str) -> str | int:
    """The key of a mapping, or the number in a list, that a step names."""
    if not isinstance(at, list):
        return step
    if not step.isdecimal() or int(step) >= len(at):
        raise SpecError(f"--set {setting}: {path.rpartition('.')[0]} is a list of {len(at)}: use a number from 0")
    return int(step)


_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_OF_A_SHELL = re.compile(r"\$\{|^\$[A-Za-z_][A-Za-z0-9_]*(?:/|$)")  # a folder of that name is meant by nobody
# The only places where ${ENV} means something: a prompt is data and is never expanded.
_URI_KEYS = (
    ("input", "manifest"),
    ("input", "videos"),
    ("input", "allow"),
    ("model",),
    ("model", "id"),
    ("prune", "feature_model"),
    ("output",),
    ("output", "uri"),
    ("notify", "webhook"),
)


def long_forms(data: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """`output: URI` as `output: {uri: URI}`, for each key and the field that its plain text stands for."""
    return {k: {fields[k]: value} if k in fields and isinstance(value, str) else value for k, value in data.items()}


def expand_environment(data: Any, uri_keys: Collection[tuple[str, ...]] = _URI_KEYS) -> Any:
    """A copy with ${ENV} expanded in uris; every unset variable is named at once, and what a shell would expand."""
    problems: list[str] = []

    def expand(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: expand(inner, (*path, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [expand(inner, path) for inner in value]
        if path not in uri_keys or not isinstance(value, str):
            return value
        key = ".".join(path)
        unset = [name for name in _ENV.findall(value) if name not in os.environ]
        problems.extend(f"{key}: the environment variable {name} is not set" for name in unset)
        if _OF_A_SHELL.search(_ENV.sub("", value)):  # not shown: a default can be a secret
            problems.append(f"{key}: ${{NAME}} is understood, and no other way in which a shell names a variable")
        return _ENV.sub(lambda match: os.environ.get(match[1], ""), value)

    expanded = expand(data, ())
    if problems:
        raise SpecError("\n".join(problems))
    return expanded


def is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
        )
    except ValueError:
        return False


def with_places(written: str, places: Mapping[str, Any]) -> str:
    """The job as written, but for these places of its input; one that is written with ${ENV} stays so."""
    data = yaml.safe_load(written) or {}
    given = data.get("input") or {}
    changed = {key: place for key, place in places.items()
               if given.get(key) not in (None, place) and not _ENV.search(str(given[key]))}  # fmt: skip
    if not changed:
        return written
    data["input"] = {**given, **changed}
    return dump_yaml(data)


def without_webhook(written: str) -> str:
    """The job as written, less the path of a webhook that is given in the open."""
    data = yaml.safe_load(written) or {}
    notify = data.get("notify") or {}
    url = notify.get("webhook") if isinstance(notify, dict) else None
    if not isinstance(url, str) or _ENV.fullmatch(url):
        return written
    data["notify"] = {**notify, "webhook": f"{urlsplit(url).scheme}://{urlsplit(url).netloc}/..."}
    return dump_yaml(data)


_TEMPLATE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def template_names(text: str) -> list[str]:
    """The columns that a prompt's text uses; ValueError where it isn't a template."""
    names: list[str] = []
    for match in _TEMPLATE.finditer(text):
        if match[0] in ("{{", "}}"):
            continue
        if match[1] is None:
            raise ValueError(f"a lone {match[0]!r} at character {match.start() + 1}; write {match[0] * 2} for the sign")
        if not re.fullmatch(r"\w[\w \-]*", match[1]):
            raise ValueError(f"{match[0]} is not a column's name; only {{name}} is known, {{{{ and }}}} are the signs")
        names.append(match[1])
    return names


def fill_template(text: str, values: Mapping[str, str]) -> str:
    """The text with its {names} replaced; a value is never read as a template itself."""

    def one(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else values[match[1]]

    return _TEMPLATE.sub(one, text)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word), list(itertools.islice(known, MOST_COMPARED)), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a mistake, each with the key's path and the remedy."""
    lines = (_explain_one(dict(one), model) for one in error.errors(include_url=False))
    return "\n".join(dict.fromkeys(lines))


def _explain_one(one: dict[str, Any], model: type[BaseModel]) -> str:
    loc, kind, given = one["loc"], one["type"], one.get("input")
    path = _path(loc)
    context = one.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        return f"{path}: unknown key{did_you_mean(loc[-1], known)}; known here: {', '.join(known)}"
    if kind == "missing":
        return f"{path}: missing, and it has no default"
    if kind == "model_type":
        return f"{path}: must be keys with values, of {', '.join(_keys_at(model, loc))}; got {_shown(given)}"
    if kind == "too_short":
        return f"{path}: must hold at least {context['min_length']}, got {_shown(given)}"
    if kind == "value_error":
        text = str(context["error"])
        return f"{path}: {text}" if path else text
    if kind == "literal_error":
        wanted = re.findall(r"'([^']*)'", context["expected"])
        return f"{path}: must be one of {', '.join(wanted)}, got {given!r}{did_you_mean(given, wanted)}"
    if kind == "string_pattern_mismatch":
        return f"{path}: may hold letters, digits, '_', '-' and '.', got {given!r}"
    message = (
        one["msg"]
        .replace("Input should be", "must be")
        .replace("a valid integer", "a whole number")
        .replace("a valid tuple", "a list")
        .replace("a valid ", "a ")
    )
    return f"{path}: {message[0].lower()}{message[1:]}, got {_shown(given)}"


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _path(loc: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")


def _keys_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys that are known where an unknown one stood."""
    at: Any = model
    for step in loc:
        if isinstance(step, str):
            at = part_of(at.model_fields[step].annotation)
    return list(at.model_fields)


def part_of(annotation: Any) -> Any:
    """The part inside `Part`, `Part | None` or `tuple[Part, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(part_of, get_args(annotation))), None)


def published_schema(schema: dict[str, Any], alternatives: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The JSON schema with the short forms that JobSpec takes besides its parts."""
    properties = schema["properties"]
    text, nothing = {"type": "string", "minLength": 1}, {"type": "null"}
    for key, short in (("output", text), ("model", text), ("budget", nothing)):
        part = properties[key]
        properties[key] = {"anyOf": [short, {"$ref": part["$ref"]}]}
        properties[key].update({name: value for name, value in part.items() if name != "$ref"})
    for part, keys in alternatives.items():
        # At most one of the keys may be given with a value.
        pairs = itertools.combinations(keys, 2)
        given = [
            {"required": list(pair), "properties": {key: {"not": {"type": "null"}} for key in pair}} for pair in pairs
        ]
        schema["$defs"][part]["not"] = {"anyOf": given}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "mlb-batch job"}
