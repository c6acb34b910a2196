"""JSON to frozen dataclasses and back, strictly: what isn't declared is refused by its path, never guessed."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from DeepLabSegLib.errors import InvalidInput

__all__ = ["dumps", "from_json", "load_json", "parse_json", "to_json"]

T = TypeVar("T")


def from_json(cls: type[T], value: object, where: str = "") -> T:
    """The dataclass `cls` from decoded JSON; `where` is the path shown in errors.

    Raises `InvalidInput` for unknown or missing keys and for values of another type than declared.
    """
    return _convert(cls, value, where)


def to_json(value: Any) -> Any:
    """What `json.dumps` takes, from a dataclass; numpy's numbers count as Python's.

    Fields that keep a default of None are left out.
    """
    if is_dataclass(value):
        kept = [f for f in fields(value) if not (getattr(value, f.name) is None and f.default is None)]
        return {f.name: to_json(getattr(value, f.name)) for f in kept}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def load_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. Raises `InvalidInput` that says what is wrong with it, but not its name."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InvalidInput("it does not exist; check the path") from None
    except OSError as error:
        raise InvalidInput(f"it can't be opened ({error.strerror}); give a file that can be read") from None
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """What JSON in UTF-8 says, also after the mark that Windows' editors begin it with. Raises `InvalidInput`."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"it is no JSON in UTF-8 ({error}); correct it") from None


def dumps(value: Any, indent: int = 0) -> str:
    """JSON for people: an entry per line, and lists of plain values on one line."""
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {dumps(item, indent + 2)}" for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        lines = [dumps(item, indent + 2) for item in value]
    else:
        return json.dumps(value, ensure_ascii=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    margin = " " * indent
    inner = f",\n{margin}  ".join(lines)
    return f"{opening}\n{margin}  {inner}\n{margin}{closing}"


def _convert(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            raise InvalidInput(f"{where} is {value!r}; choose one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (tuple, Sequence):
        _expect(list, value, where)
        if origin is tuple and Ellipsis not in arguments:
            if len(value) != len(arguments):
                raise InvalidInput(f"{where} has {len(value)} entries; it needs {len(arguments)}")
            kinds = arguments
        else:
            kinds = (arguments[0],) * len(value)
        return tuple(_convert(k, item, f"{where}[{n}]") for n, (k, item) in enumerate(zip(kinds, value, strict=True)))
    if origin in (dict, Mapping):
        _expect(dict, value, where)
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(kind, value, where)
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    _expect(dict, value, where)
    declared = {f.name: f for f in fields(kind) if f.init}
    unknown = sorted(set(value) - set(declared))
    if unknown:
        raise InvalidInput(
            f"{where or 'the file'} has unknown keys {', '.join(unknown)}; known are {', '.join(declared)}"
        )
    missing = [
        name
        for name, f in declared.items()
        if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise InvalidInput(f"{where or 'the file'} lacks {', '.join(missing)}")
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    return kind(**{name: _convert(hints[name], item, prefix + name) for name, item in value.items()})


def _union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _convert(kind, value, where)
            except InvalidInput as error:
                problems.append(str(error))
    raise InvalidInput("; or ".join(problems))


def _expect(kind: type, value: object, where: str) -> None:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "an integer",
        float: "a number",
        bool: "true or false",
    }
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidInput(f"{where or 'the file'} is {value!r}; it must be {names.get(kind, kind.__name__)}")
