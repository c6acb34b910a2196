"""What Slicer packages is what is there: CMake's lists, the panel's names, the catalogue entry."""

import ast
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from DeepLabSegLib.catalog import DEFAULT_MODEL

ROOT = Path(__file__).parents[2]
UI = ROOT / "DeepLabSeg" / "Resources" / "UI" / "DeepLabSeg.ui"

CONFIG = """
if(NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
  message(FATAL_ERROR "Slicer is a program of 64 bits, and ${CMAKE_PROJECT_NAME} of '${CMAKE_SIZEOF_VOID_P}' bytes")
endif()
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/use.cmake)
"""
"""Of SlicerConfig.cmake, what refuses an extension: one whose project has no language has no size of a pointer."""

STAND_IN = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS;WITH_SUBDIR" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  foreach(file IN LISTS MODULE_SCRIPTS MODULE_RESOURCES)
    get_filename_component(folder ${file} DIRECTORY)
    if(MODULE_WITH_SUBDIR)
      set(folder ${MODULE_NAME}/${folder})
    endif()
    install(FILES ${file} DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${folder})
  endforeach()
endmacro()
macro(slicer_add_python_test)
  cmake_parse_arguments(TEST "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT})
    message(FATAL_ERROR "${TEST_SCRIPT} is missing")
  endif()
endmacro()
"""
"""Of Slicer's macros, what decides where a file comes to lie, and whether a test is there."""


def listed(cmake: Path, variable: str) -> list[str]:
    text = cmake.read_text(encoding="utf-8")
    return re.search(rf"set\({variable}\s+(.*?)\)", text, re.DOTALL).group(1).split()


def there(folder: Path, *patterns: str) -> list[str]:
    found = {path for pattern in patterns for path in folder.rglob(pattern) if "__pycache__" not in path.parts}
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


@pytest.mark.parametrize("module", ["DeepLabSeg", "DeepLabSegLib"])
def test_every_script_is_packaged(module):
    assert listed(ROOT / module / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS") == there(ROOT / module, "*.py")


def test_every_resource_is_packaged():
    folder = ROOT / "DeepLabSeg"
    resources = [f"Resources/{name}" for name in there(folder / "Resources", "*")]
    assert listed(folder / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES") == resources


def test_models_and_sample_are_packaged():
    shipped = [f"{part}/{name}" for part in ("Models", "SampleData") for name in there(ROOT / "Resources" / part, "*")]
    assert listed(ROOT / "DeepLabSegLib" / "CMakeLists.txt", "SHIPPED_FILES") == shipped


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no compiler is installed")
def test_the_installed_extension_finds_its_library_and_models(tmp_path):
    config = tmp_path / "config"
    config.mkdir()
    (config / "SlicerConfig.cmake").write_text(CONFIG)
    (config / "use.cmake").write_text(STAND_IN)
    (config / "empty.cmake").write_text("")
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path / "build", f"-DSlicer_DIR={config}", f"-DCMAKE_INSTALL_PREFIX={tmp_path}",
         "-DBUILD_TESTING=ON",
         "-DSlicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR=modules", "-DSlicer_QTSCRIPTEDMODULES_LIB_DIR=modules",
         f"-DSlicer_EXTENSION_GENERATE_CONFIG={config / 'empty.cmake'}",
         f"-DSlicer_EXTENSION_CPACK={config / 'empty.cmake'}"],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["cmake", "--install", tmp_path / "build"], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'modules')!r})\n"
        "from DeepLabSegLib import catalog, load_model\n"
        "print(catalog.__file__, load_model(catalog.DEFAULT_MODEL, 'cpu').bundle.name, catalog.resource('SampleData'))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    places = done.stdout.split()
    assert places[1] == DEFAULT_MODEL
    assert all(place.startswith(str(tmp_path / "modules")) for place in (places[0], places[2]))
    assert (tmp_path / "modules" / "DeepLabSegPanel" / "panel.py").is_file()


def test_every_name_used_of_the_panel_is_in_its_ui_file():
    names = {element.get("name") for element in ET.parse(UI).iter() if element.tag in ("widget", "layout")}
    used = set()
    for path in (ROOT / "DeepLabSeg").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            value = getattr(node, "value", None)
            is_ui = (isinstance(value, ast.Attribute) and value.attr == "ui") or (
                isinstance(value, ast.Name) and value.id == "ui"
            )
            if isinstance(node, ast.Attribute) and is_ui:
                used.add(node.attr)
    texts = re.findall(r'"(\w+(?:ComboBox|CollapsibleButton|LineEditLabel|ComboBoxLabel))"', _panel_sources())
    assert len(used) > 20
    assert used - names == set()
    assert set(texts) - names == set()


def _panel_sources() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / "DeepLabSeg").rglob("*.py"))


def test_the_panel_has_the_names_that_scripts_rely_on():
    names = {element.get("name") for element in ET.parse(UI).iter("widget")}
    promised = """inputSelector roiSelector modelComboBox weightsPathLineEdit encoderComboBox depthComboBox
    dimensionsComboBox deviceComboBox precisionComboBox overlapSlider mirrorCheckBox outputSelector show3DCheckBox
    uncertaintyCheckBox segmentButton progressBar statusLabel logTextEdit unloadButton"""
    assert set(promised.split()) - names == set()


def test_every_parameter_bound_in_the_ui_is_declared():
    bound = {
        prop.find("string").text for prop in ET.parse(UI).iter("property") if prop.get("name") == "SlicerParameterName"
    }
    source = (ROOT / "DeepLabSeg" / "DeepLabSegPanel" / "parameters.py").read_text(encoding="utf-8")
    declared = {node.target.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.AnnAssign)}
    assert bound
    assert bound <= declared


def test_the_catalogue_entry_is_complete():
    entry = json.loads((ROOT / "Resources" / "ExtensionsIndex" / "DeepLabSeg.json").read_text(encoding="utf-8"))
    assert set(entry) >= {"$schema", "category", "scm_url", "scm_revision", "build_dependencies", "tier"}
    assert entry["category"] == "Segmentation"
    depends = re.search(r'EXTENSION_DEPENDS "(.*?)"', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")).group(1)
    assert entry["build_dependencies"] == depends.split()


def test_pictures_that_the_extension_names_are_there():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    urls = re.findall(r"https://raw\.\S+?/main/([^\s\"]+)", text)
    assert len(urls) >= 2
    for path in urls:
        assert (ROOT / path).is_file(), path


def test_icons_have_the_size_that_slicer_wants():
    from PIL import Image

    with Image.open(ROOT / "DeepLabSeg" / "Resources" / "Icons" / "DeepLabSeg.png") as icon:
        assert icon.size == (128, 128)


def test_nothing_imports_torch_before_it_is_needed():
    """The panel opens without PyTorch, and installing it is a question."""
    top = set()
    for path in (ROOT / "DeepLabSeg").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("DeepLabSegLib"):
                top |= {
                    f"{node.module}.{alias.name}" if node.module == "DeepLabSegLib" else node.module
                    for alias in node.names
                }
            assert not (isinstance(node, ast.Import | ast.ImportFrom) and "torch" in ast.dump(node).split("'"))
    modules = ", ".join(sorted(top - {"DeepLabSegLib.mrml", "DeepLabSegLib.surface"}))
    code = f"import sys\nimport {modules}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
