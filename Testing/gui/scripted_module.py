"""`slicer.ScriptedLoadableModule`: the base classes of a scripted module, its widget, its logic and its self-test."""

from __future__ import annotations

import types
import unittest
from pathlib import Path

import slicer


class ScriptedLoadableModule:
    """What Slicer shows of a module; `parent` carries its title and texts."""

    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = parent.helpText = parent.acknowledgementText = ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []

    def resourcePath(self, filename: str) -> str:
        return resource_path(self.parent.path, filename)


class ScriptedLoadableModuleWidget:
    """The panel of a module, in `parent`'s layout."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()

    def resourcePath(self, filename: str) -> str:
        return resource_path(slicer.util.modulePath(self.moduleName), filename)

    def setup(self) -> None:
        """Slicer puts its developer section here, which is off."""

    def cleanup(self) -> None:
        """Slicer calls this when the module is unloaded."""


class ScriptedLoadableModuleLogic:
    """What a module computes, and the node that keeps its parameters."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        """The module's parameter node; made where the scene has none."""
        if not self.isSingletonParameterNode:
            return next(iter(self.getAllParameterNodes()), None) or self._add_parameter_node()
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            return self._add_parameter_node()
        node.SetAttribute("ModuleName", self.moduleName)  # closing a scene takes it away
        return node

    def getAllParameterNodes(self) -> list:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self):
        node = slicer.vtkMRMLScriptedModuleNode()
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node

    def _add_parameter_node(self):
        return slicer.mrmlScene.AddNode(self.createParameterNode())


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's self-test, run by Slicer's Reload and Test."""

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        slicer.util.delayDisplay(message, msec or requestedDelay or 100)

    def runTest(self) -> None:
        """Every method whose name has `test` in it."""
        for name in [name for name in dir(self) if "test" in name and callable(getattr(self, name))]:
            self.setUp()
            getattr(self, name)()
            self.tearDown()


def resource_path(module_file: str, filename: str) -> str:
    return str(Path(module_file).parent / "Resources" / filename)


def make_module() -> types.ModuleType:
    """The module `slicer.ScriptedLoadableModule`."""
    module = types.ModuleType("slicer.ScriptedLoadableModule")
    offered = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    vars(module).update({member.__name__: member for member in offered})
    return module
