"""The Slicer that the tests run inside of, with the interface of the stand-in's `SlicerWindow`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import qt
import slicer

import __main__


@dataclass
class Message:
    """A message box that would have been shown."""

    text: str
    options: dict[str, Any]


@dataclass
class RealWindow:
    """Slicer itself; only its message boxes are answered, since nobody is there to do it."""

    folder: Path
    messages: list[Message] = field(default_factory=list)
    confirms: bool = True
    _widgets: list[Any] = field(default_factory=list)
    _errors: list[Exception] = field(default_factory=list)
    _undo: list[Callable[[], object]] = field(default_factory=list)

    def install(self) -> None:
        """Empty the scene, and listen for errors in slots, which PythonQt prints and swallows."""
        slicer.mrmlScene.Clear()
        # Another Slicer may have its temporary files in the same folder.
        temporary, slicer.app.temporaryPath = slicer.app.temporaryPath, str(self.folder)
        self._undo.append(lambda: setattr(slicer.app, "temporaryPath", temporary))
        shown, sys.excepthook = sys.excepthook, self._on_error
        self._undo.append(lambda: setattr(sys, "excepthook", shown))
        # In testing mode Slicer asks nobody and takes the answer to be no.
        asks, slicer.util.confirmYesNoDisplay = slicer.util.confirmYesNoDisplay, self._answer
        self._undo.append(lambda: setattr(slicer.util, "confirmYesNoDisplay", asks))

    def remove(self) -> None:
        """Leave Slicer as it was."""
        for representation in self._widgets:
            representation.self().cleanup()
            representation.delete()  # at once: Slicer ends badly where a module has several
        slicer.mrmlScene.Clear()
        for undo in reversed(self._undo):
            undo()
        slicer.app.processEvents()

    def load_module(self, file: Path) -> Any:
        """A new widget of a scripted module, which is registered first if Slicer doesn't know it."""
        name = file.stem
        if not hasattr(slicer.modules, name.lower()):
            manager = slicer.app.moduleManager().factoryManager()
            manager.registerModule(qt.QFileInfo(str(file)))
            manager.loadModules([name])
            __main__.sys = sys  # loading has taken it away from the script that is running
        representation = getattr(slicer.modules, name.lower()).createNewWidgetRepresentation()
        representation.setMRMLScene(slicer.mrmlScene)
        self._widgets.append(representation)
        return representation.self()

    def take_errors(self) -> list[Exception]:
        """What slots have raised since the last call."""
        errors, self._errors = self._errors, []
        return errors

    def _on_error(self, _kind: type, error: Exception, _where: Any) -> None:
        logging.error("in a slot", exc_info=error)
        self._errors.append(error)

    def _answer(self, text: str, *_args: Any, **options: Any) -> bool:
        self.messages.append(Message(text, options))
        return self.confirms
