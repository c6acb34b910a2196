"""PySide6 objects as PythonQt shows Qt: properties are attributes, enums ints, signals go by their C++ signature.

One wrapper class per Qt class is made when it is first asked for. What a wrapper does not hold itself it looks up in
the object's QMetaObject: a property gives its value, anything else is a method with converted arguments and result.
"""

from __future__ import annotations

import enum
import functools
import inspect
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, get_args

import PySide6.support.signature  # noqa: F401 - makes shibokensupport importable
import shiboken6
from PySide6.QtCore import SIGNAL, QMetaMethod, QMetaObject, QObject, SignalInstance
from PySide6.QtWidgets import QLayout
from shibokensupport.signature import get_signature

slot_errors: list[Exception] = []
"""What slots raised. Qt carries on after an error in a slot, so a test has to look here."""


class WrapperType(type):
    """The type of `qt.QLabel`: calling it makes a label; its attributes are static methods and enum values."""

    qt_class: type

    def __call__(cls, *args):
        return wrap(call(cls.qt_class, args))

    def __getattr__(cls, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return to_python(getattr(cls.qt_class, name))


HIDDEN_BY_SLOTS = {("QTimer", "singleShot")}
"""Properties whose name is a static method's too, which PythonQt gives instead."""


class Wrapper(metaclass=WrapperType):
    """A Qt object as PythonQt shows it."""

    __slots__ = ("_object",)

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        qt_object = alive(self)
        if isinstance(qt_object, QObject) and has_property(qt_object, qt_name(name)):
            return to_python(qt_object.property(qt_name(name)))
        value = getattr(qt_object, name)
        return SignalWrapper(self, name) if isinstance(value, SignalInstance) else to_python(value)

    def __setattr__(self, name: str, value) -> None:
        qt_object, name = alive(self), qt_name(name)
        if not (isinstance(qt_object, QObject) and has_property(qt_object, name)):
            raise AttributeError(f"{type(self).__name__} has no property {name}, and PythonQt adds no attributes")
        if (type(self).__name__, name) in HIDDEN_BY_SLOTS:
            raise AttributeError(f"Slot '{name}' can not be overwritten on {type(self).__name__} object")
        index = qt_object.metaObject().indexOfProperty(name)
        accepted = qt_object.setProperty(name, to_qt(value))
        if index >= 0 and not accepted:
            raise AttributeError(f"{type(self).__name__}.{name} is read-only or does not take {value!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapper) and identity(self) == identity(other)

    def __hash__(self) -> int:
        return hash(identity(self))

    def __bool__(self) -> bool:
        """Whether the object is there; an empty layout, which has a length of 0, isn't either."""
        if not shiboken6.isValid(self._object):
            return False
        return not isinstance(self._object, QLayout) or self._object.count() > 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {qt_name_of(self._object)}>"

    def className(self) -> str:
        return alive(self).metaObject().className()

    def connect(self, signal: str, receiver: Callable) -> bool:
        """Call `receiver` at a signal such as `clicked(bool)`, with as many of its arguments as `receiver` names."""
        sender, signature = alive(self), known_signal(self, signal)
        slot = make_slot(receiver)
        if key(sender) not in Connections.of_sender:
            Connections.of_sender[key(sender)] = []
            sender.destroyed.connect(functools.partial(Connections.forget, key(sender)))
        Connections.of_sender[key(sender)].append((signature, receiver, slot))
        return bool(QObject.connect(sender, SIGNAL(signature), slot))

    def disconnect(self, signal: str, receiver: Callable) -> bool:
        """Undo `connect`; False where there was no such connection."""
        sender, signature = alive(self), known_signal(self, signal)
        connections = Connections.of_sender.get(key(sender), [])
        for connection in connections:
            if connection[:2] == (signature, receiver):
                connections.remove(connection)
                return bool(QObject.disconnect(sender, SIGNAL(signature), connection[2]))
        return False


class SignalWrapper:
    """A signal as an attribute: `button.clicked.connect(f)`."""

    def __init__(self, sender: Wrapper, name: str):
        self._sender = sender
        self._signature = next(signature for signature in signals(sender._object) if signature.startswith(f"{name}("))

    def connect(self, receiver: Callable) -> bool:
        return self._sender.connect(self._signature, receiver)

    def disconnect(self, receiver: Callable) -> bool:
        return self._sender.disconnect(self._signature, receiver)

    def emit(self, *args: object) -> None:
        getattr(alive(self._sender), self._signature.partition("(")[0]).emit(*map(to_qt, args))


class Connections:
    """What is connected, per C++ object: a wrapper lives shorter than the object it shows."""

    of_sender: ClassVar[dict[int, list[tuple[str, Callable, Callable]]]] = {}

    @classmethod
    def forget(cls, sender: int, *_: object) -> None:
        cls.of_sender.pop(sender, None)


class Binding(types.ModuleType):
    """A module such as `qt`: its attributes are the wrapped classes of `sources`, the first that has the name."""

    def __init__(self, name: str, *sources: object):
        super().__init__(name)
        self._sources = sources

    def __getattr__(self, name: str):
        for source in self._sources:
            if not name.startswith("_") and hasattr(source, name):
                return to_python(getattr(source, name))
        raise AttributeError(f"{self.__name__} has no {name}")


@functools.cache
def wrapper_class(qt_class: type) -> WrapperType:
    """The wrapper of a Qt class; it inherits as the Qt class does, so `isinstance` holds."""
    bases = tuple(wrapper_class(base) for base in qt_class.__bases__ if is_qt_class(base)) or (Wrapper,)
    return WrapperType(qt_class.__name__, bases, {"__slots__": (), "qt_class": qt_class})


def wrap(qt_object: shiboken6.Object) -> Wrapper:
    """The wrapper of a Qt object."""
    cls = wrapper_class(type(qt_object))
    wrapper = cls.__new__(cls)
    object.__setattr__(wrapper, "_object", qt_object)
    return wrapper


def to_python(value: Any) -> Any:
    """What Python gets for what Qt returned."""
    if isinstance(value, shiboken6.Object):
        return wrap(value)
    if isinstance(value, enum.Enum) and type(value).__module__.startswith("PySide6"):
        return value.value
    if isinstance(value, (list, tuple)):
        return tuple(map(to_python, value))
    if isinstance(value, type):
        return wrapper_class(value) if is_qt_class(value) else value
    if inspect.isroutine(value):
        return make_method(value)
    return value


def to_qt(value: Any) -> Any:
    """What Qt gets for what Python passed."""
    if isinstance(value, Wrapper):
        return value._object
    if isinstance(value, WrapperType):
        return value.qt_class
    if isinstance(value, (list, tuple)):
        return [to_qt(item) for item in value]
    return value


PATH_AND_FILTER = {"getOpenFileName", "getOpenFileNames", "getSaveFileName"}
"""File dialogs whose PySide form also returns the chosen filter."""


def make_method(function: Callable) -> Callable:
    """A Qt method that converts its arguments and its result."""

    def method(*args):
        result = call(function, args)
        return to_python(result[0] if function.__name__ in PATH_AND_FILTER else result)

    method.__name__ = function.__name__
    return method


def call(function: Callable, args: tuple) -> Any:
    """`function(*args)`, where an int also serves for an enum."""
    converted = [to_qt(arg) for arg in args]
    try:
        return function(*converted)
    except TypeError as error:
        for reading in enum_readings(function, converted):
            try:
                return function(*reading)
            except TypeError:
                continue
        raise error


def enum_readings(function: Callable, args: list) -> Iterator[list]:
    """The arguments with ints turned into enums, for every overload that takes some."""
    inherited = getattr(type(getattr(function, "__self__", None)), function.__name__, None)
    found = get_signature(function) or get_signature(inherited) or []
    for signature in found if isinstance(found, list) else [found]:
        annotations = [parameter.annotation for parameter in signature.parameters.values() if parameter.name != "self"]
        reading = [
            enum_type(arg) if isinstance(arg, int) and enum_type else arg
            for arg, enum_type in zip(args, map(enum_of, annotations), strict=False)
        ]
        if len(reading) == len(args) and any(new is not old for new, old in zip(reading, args, strict=True)):
            yield reading


def make_slot(receiver: Callable) -> Callable:
    """A slot that calls `receiver` with the arguments it names, and keeps its errors in `slot_errors`."""
    count = argument_count(receiver)

    def slot(*args):
        try:
            receiver(*map(to_python, args[:count]))
        except Exception as error:
            traceback.print_exception(error)
            slot_errors.append(error)

    return slot


def argument_count(receiver: Callable) -> int | None:
    """How many positional arguments PythonQt passes: those that a Python function names, or all (None)."""
    function = receiver.__func__ if inspect.ismethod(receiver) else receiver
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - inspect.ismethod(receiver)


def known_signal(sender: Wrapper, signal: str) -> str:
    """The signature that Qt knows the signal by."""
    qt_object = sender._object
    signature = QMetaObject.normalizedSignature(signal).data().decode()
    signature = getattr(qt_object, "vtk_signals", {}).get(signature, signature)
    if qt_object.metaObject().indexOfSignal(signature) < 0:
        raise ValueError(f"{type(sender).__name__} has no signal {signal}; it has {', '.join(signals(qt_object))}")
    return signature


def signals(qt_object: QObject) -> list[str]:
    """The signatures of an object's signals."""
    meta = qt_object.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return [method.methodSignature().data().decode() for method in methods if method.methodType() is QMetaMethod.Signal]


def has_property(qt_object: QObject, name: str) -> bool:
    return qt_object.metaObject().indexOfProperty(name) >= 0 or name in qt_object.dynamicPropertyNames()


def qt_name(name: str) -> str:
    """PythonQt shows an object's name also as `name`."""
    return "objectName" if name == "name" else name


def qt_name_of(qt_object: shiboken6.Object) -> str:
    named = isinstance(qt_object, QObject) and shiboken6.isValid(qt_object)
    return qt_object.objectName() if named else "without name"


def alive(wrapper: Wrapper) -> Any:
    """The wrapped object, unless Qt has deleted it."""
    if not shiboken6.isValid(wrapper._object):
        raise ValueError(f"this {type(wrapper).__name__} has been deleted")
    return wrapper._object


def key(qt_object: shiboken6.Object) -> int:
    return shiboken6.getCppPointer(qt_object)[0]


def identity(wrapper: Wrapper) -> object:
    """What makes two wrappers equal: the same QObject, or an equal value such as a QSize."""
    return key(wrapper._object) if isinstance(wrapper._object, QObject) else wrapper._object


def is_qt_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, shiboken6.Object) and value is not shiboken6.Object


def enum_of(annotation: Any) -> type[enum.Enum] | None:
    """The enum that a parameter takes, perhaps among other types."""
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)), None)
