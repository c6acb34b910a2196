"""The house keeps its walls: who may import what, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "DeepLabSegLib"
FILES = sorted(LIBRARY.rglob("*.py"))

# Floors of the house, lowest first; a file imports only from its own floor and those below.
FLOORS = [
    {"errors", "checks", "image", "schema", "outputs", "region", "catalog", "texts", "startup", "process"},
    {
        "models",
        "preprocess",
        "postprocess",
        "resampling",
        "tiling",
        "transfer",
        "passage",
        "windows",
        "streaming",
        "ladder",
        "optimize",
        "devices",
    },
    {"weights", "bundle"},
    {"segmenter", "evaluate", "overlay", "export"},
    {"mrml", "files", "session", "surface"},
    {"worker", "batch", "pairing", "comparison"},
    {"training"},
    {"commands"},
    {"cli"},
]
ONLY_IN = {"slicer": ["mrml"], "vtk": ["mrml", "surface"], "SimpleITK": ["files"]}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def floor(name: str) -> int:
    return next((n for n, names in enumerate(FLOORS) if name in names), -1)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_point_one_way_and_outside_packages_have_one_door(path):
    here = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package not in ("qt", "ctk", "PySide6"), f"{path.name} imports {name}"
        assert here in ONLY_IN.get(package, [here]), f"{path.name} imports {name}"
        if package == "DeepLabSegLib" and rest and here != "__init__":
            part = rest.split(".")[0]
            assert floor(part) >= 0 or part in ("", "Segment"), f"{part} has no floor; add it to FLOORS"
            assert floor(part) <= floor(here), f"{path.name} imports {name} from a floor above it"


def test_importing_the_package_alone_does_not_import_torch():
    code = "import sys, DeepLabSegLib; sys.exit('torch' in sys.modules or 'SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there():
    import DeepLabSegLib

    for name in DeepLabSegLib.__all__:
        assert getattr(DeepLabSegLib, name) is not None
    with pytest.raises(AttributeError, match="DeepLabV4"):
        _ = DeepLabSegLib.DeepLabV4


def test_packages_are_there_without_being_imported():
    code = "import DeepLabSegLib as d; print(d.weights.inflate, d.training.train_model, d.batch, d.evaluate)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
