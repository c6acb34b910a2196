"""The fields of a parameter node: how a value of each type is kept in the node, and which values are refused."""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import slicer
from slicer.util import NodeModify


@dataclass
class Default:
    """The value of a field that has not been set; `generator` makes it anew each time."""

    initial: Any = None
    generator: Callable[[], Any] | None = field(default=None, kw_only=True)

    @property
    def value(self):
        return self.generator() if self.generator else self.initial


@dataclass
class WithinRange:
    """Bounds, both allowed; a bound widget takes them as its range."""

    minimum: float
    maximum: float

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not between {self.minimum} and {self.maximum}")


@dataclass
class Minimum:
    """The least value allowed."""

    minimum: float

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"{value} is less than {self.minimum}")


@dataclass
class Maximum:
    """The greatest value allowed."""

    maximum: float

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"{value} is greater than {self.maximum}")


@dataclass
class Choice:
    """The values allowed, which a bound combo box lists."""

    choices: list

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {self.choices}")


class TextStore:
    """Keeps a value as text in one parameter of the node."""

    def __init__(self, kind: type | tuple[type, ...], default: Any, to_text: Callable, from_text: Callable):
        self.kind, self.default, self.to_text, self.from_text = kind, default, to_text, from_text

    def takes(self, value) -> bool:
        return isinstance(value, self.kind)

    def has(self, node, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, self.to_text(value))

    def read(self, node, name: str):
        return self.from_text(node.GetParameter(name))

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)


class NodeStore(TextStore):
    """Keeps a node as a node reference; an empty parameter of the same name says that there is one."""

    def __init__(self, kind: type):
        super().__init__(kind, None, lambda _: "", str)

    def takes(self, value) -> bool:
        return value is None or super().takes(value)

    def write(self, node, name: str, value) -> None:
        super().write(node, name, value)
        node.SetNodeReferenceID(name, value.GetID() if value else None)

    def read(self, node, name: str):
        return node.GetNodeReference(name)

    def remove(self, node, name: str) -> None:
        super().remove(node, name)
        node.RemoveNodeReferenceIDs(name)


class UnionStore:
    """Keeps a value under `name.0`, `name.1`, ... by its place in the union."""

    def __init__(self, stores: list):
        self.stores = stores
        self.default = None if NONE_STORE in stores else stores[0].default

    def takes(self, value) -> bool:
        return self._place(value) is not None

    def _place(self, value) -> int | None:
        fitting = (store.takes(value) and (store is NONE_STORE) == (value is None) for store in self.stores)
        return next((index for index, fits in enumerate(fitting) if fits), None)

    def has(self, node, name: str) -> bool:
        return any(store.has(node, f"{name}.{index}") for index, store in enumerate(self.stores))

    def write(self, node, name: str, value) -> None:
        with NodeModify(node):
            self.remove(node, name)
            index = self._place(value)
            self.stores[index].write(node, f"{name}.{index}", value)

    def read(self, node, name: str):
        for index, store in enumerate(self.stores):
            if store.has(node, f"{name}.{index}"):
                return store.read(node, f"{name}.{index}")
        return self.default

    def remove(self, node, name: str) -> None:
        for index, store in enumerate(self.stores):
            store.remove(node, f"{name}.{index}")


class TupleStore:
    """Keeps a tuple of fixed length under `name.0`, `name.1`, ..."""

    def __init__(self, stores: list):
        self.stores = stores
        self.default = tuple(store.default for store in stores)

    def takes(self, value) -> bool:
        return len(value) == len(self.stores) and all(s.takes(v) for s, v in zip(self.stores, value, strict=True))

    def has(self, node, name: str) -> bool:
        return self.stores[0].has(node, f"{name}.0")

    def write(self, node, name: str, value) -> None:
        with NodeModify(node):
            for index, (store, item) in enumerate(zip(self.stores, value, strict=True)):
                store.write(node, f"{name}.{index}", item)

    def read(self, node, name: str) -> tuple:
        return tuple(store.read(node, f"{name}.{index}") for index, store in enumerate(self.stores))

    def remove(self, node, name: str) -> None:
        for index, store in enumerate(self.stores):
            store.remove(node, f"{name}.{index}")


class ListStore:
    """Keeps a list under `name.0`, `name.1`, ... and its length under `name.len`."""

    def __init__(self, store: Any):
        self.store = store
        self.default: list = []

    def takes(self, value) -> bool:
        return all(self.store.takes(item) for item in value)

    def has(self, node, name: str) -> bool:
        return bool(node.HasParameter(f"{name}.len"))

    def write(self, node, name: str, value) -> None:
        items = list(value)
        with NodeModify(node):
            self.remove(node, name)
            for index, item in enumerate(items):
                self.store.write(node, f"{name}.{index}", item)
            node.SetParameter(f"{name}.len", str(len(items)))

    def read(self, node, name: str) -> StoredList:
        items = [self.store.read(node, f"{name}.{index}") for index in range(self._length(node, name))]
        return StoredList(items, lambda changed: self.write(node, name, changed))

    def remove(self, node, name: str) -> None:
        for index in range(self._length(node, name)):
            self.store.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")

    def _length(self, node, name: str) -> int:
        return int(node.GetParameter(f"{name}.len") or 0)


class StoredList(MutableSequence):
    """A list whose changes go to the node. As in Slicer it is no `list`, so json and `isinstance` do not take it."""

    def __init__(self, items: list, save: Callable[[list], None]):
        self._items, self._save = items, save

    def __getitem__(self, index):
        return self._items[index]

    def __setitem__(self, index, value) -> None:
        self._items[index] = value
        self._save(self._items)

    def __delitem__(self, index) -> None:
        del self._items[index]
        self._save(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == (other._items if isinstance(other, StoredList) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"StoredList({self._items})"

    def insert(self, index: int, value) -> None:
        self._items.insert(index, value)
        self._save(self._items)


NONE_STORE = TextStore(types.NoneType, None, str, lambda _: None)
TEXT_STORES = {
    str: TextStore(str, "", str, str),
    int: TextStore(int, 0, str, int),
    float: TextStore((int, float), 0.0, str, float),
    bool: TextStore(bool, False, str, lambda text: text == "True"),
    Path: TextStore(Path, Path(), str, Path),
    types.NoneType: NONE_STORE,
}


def split(hint: Any) -> tuple[Any, tuple]:
    """The type that a hint names, and its annotations."""
    if get_origin(hint) is Annotated:
        kind, *annotations = get_args(hint)
        return kind, tuple(annotations)
    return hint, ()


def annotation(hint: Any, kind: type) -> Any:
    """The last annotation of a kind, or None."""
    return next((found for found in reversed(split(hint)[1]) if isinstance(found, kind)), None)


def make_store(hint: Any) -> Any:
    """What keeps values of a type in the node."""
    kind, origin, members = split(hint)[0], get_origin(split(hint)[0]), get_args(split(hint)[0])
    if kind in TEXT_STORES:
        return TEXT_STORES[kind]
    if origin in (Union, types.UnionType):
        return UnionStore([make_store(member) for member in members])
    if origin is list:
        return ListStore(make_store(members[0]))
    if origin is tuple and Ellipsis not in members:
        return TupleStore([make_store(member) for member in members])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return TextStore(kind, next(iter(kind)), lambda value: value.name, kind.__getitem__)
    if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        return NodeStore(kind)
    raise TypeError(f"Slicer's parameter node keeps no {hint}")


class Field:
    """One typed value in a parameter node: an attribute of the wrapper class."""

    def __init__(self, name: str, hint: Any):
        self.name, self.hint = name, hint
        self.store = make_store(hint)
        self.validators = [found for found in split(hint)[1] if hasattr(found, "validate")]

    def __get__(self, wrapper, _owner: type):
        return self.read(wrapper.parameterNode)

    def __set__(self, wrapper, value) -> None:
        self.write(wrapper.parameterNode, value)

    def read(self, node):
        """The value in the node, which is the default where it has none."""
        if not self.store.has(node, self.name):
            default = annotation(self.hint, Default)
            self.write(node, default.value if default else self.store.default)
        return self.store.read(node, self.name)

    def write(self, node, value) -> None:
        if not self.store.takes(value):
            raise TypeError(f"{self.name} is a {split(self.hint)[0]} and does not take {value!r}")
        for validator in self.validators:
            validator.validate(value)
        self.store.write(node, self.name, value)
