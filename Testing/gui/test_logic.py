"""The module without its panel: the console, scripts, the self-test, sample data, and getting PyTorch."""

from __future__ import annotations

import csv
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.request import url2pathname

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import torch
from clicking import choose_file
from event_loop import EventLoopWatch, wait_until
from helpers import itk, make_scan, make_segmenter, save_model
from mrml_scenes import add_transform, add_volume, masks, turn

from DeepLabSegLib.errors import Cancelled, InvalidInput, OutputError


@pytest.fixture
def logic(load_module):
    return load_module().logic


@pytest.fixture
def model(tmp_path):
    return save_model(tmp_path / "tiny", make_segmenter(2))


def test_segment_gives_a_node_named_after_the_volume(logic, model, volume):
    volume.SetAndObserveTransformNodeID(add_transform(slicer.mrmlScene, turn(30, (1, 2, 3))).GetID())
    node = logic.segment(volume, model=model, device="cpu", show3D=True)
    assert node.GetName() == "Head segmentation"
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    segment = node.GetSegmentation().GetSegment("Segment_1")
    assert segment.GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    assert segment.GetLabelValue() == 1


def test_segment_fills_a_node_and_takes_every_option(logic, model, volume):
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    seen = []
    found = logic.segment(
        volume, mine, model=model, device="cpu", precision="fp32", onProgress=seen.append, tile=(32, 32), overlap=0.5,
        mirror=True, uncertainty=True, probabilities=True,
    )  # fmt: skip
    assert found is mine
    assert {step.stage for step in seen} == {"prepare", "segment", "restore"}
    assert slicer.util.getNode("Head uncertainty") is not None
    assert slicer.util.getNode("Head probabilities").GetImageData().GetNumberOfScalarComponents() == 3


def test_the_model_stays_loaded_until_it_is_unloaded(logic, model, volume, monkeypatch):
    logic.segment(volume, model=model, device="cpu")
    monkeypatch.setattr("DeepLabSegLib.session.load_model", None)
    logic.segment(volume, model=model, device="cpu")
    logic.unload()
    with pytest.raises(TypeError, match="not callable"):
        logic.segment(volume, model=model, device="cpu")


def test_what_bare_weights_do_not_tell_is_said(logic, volume, tmp_path):
    torch.save(make_segmenter(2).network.state_dict(), tmp_path / "mine.pth")
    with pytest.warns(UserWarning, match=r"mine\.pth doesn't tell .*without normalisation"):
        logic.segment(volume, model=tmp_path / "mine.pth", device="cpu")


def test_a_run_that_fails_or_is_cancelled_leaves_the_scene(logic, model, volume):
    before = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(Cancelled):
        logic.segment(volume, model=model, onProgress=lambda _: False)
    with pytest.raises(InvalidInput, match="takes 1"):
        logic.segment(volume, model=model, furtherVolumes=[volume])
    with pytest.raises(InvalidInput, match="choose a segmentation node"):
        logic.segment(volume, volume, model=model)
    alone = slicer.vtkMRMLScalarVolumeNode()
    alone.CopyContent(volume)
    with pytest.raises(InvalidInput, match="is in no scene; add it first"):
        logic.segment(alone, model=model)
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_all_nodes_of_a_list_are_segmented_and_reported(logic, model, volume, rng):
    other = add_volume(slicer.mrmlScene, make_scan(rng, (8, 30, 34)), "Other")
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    seen, steps = [], []
    scans = [volume, empty, None, other]
    cases = logic.segmentAll(scans, model=model, device="cpu", show3D=True, onCase=seen.append, onProgress=steps.append)
    assert [case.name for case in cases] == ["Head", "Empty", "None", "Other"]
    assert [case.status for case in cases] == ["done", "failed", "failed", "done"]
    assert "Empty is empty" in cases[1].message
    assert "the input is missing" in cases[2].message
    assert seen == cases
    assert "segment" in {step.stage for step in steps}
    first, _ = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert first.GetSegmentation().ContainsRepresentation("Closed surface")


def test_all_scans_of_a_folder_are_segmented_and_reported(logic, model, tmp_path, rng):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "b"):
        sitk.WriteImage(itk(make_scan(rng)), scans / f"{name}.nii.gz")
    steps = []
    logic.segmentAll(scans, tmp_path / "results", model=model, device="cpu", onProgress=steps.append)
    assert "segment" in {step.stage for step in steps}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"a.seg.nrrd", "b.seg.nrrd", "report.csv"}
    with (tmp_path / "results" / "report.csv").open(newline="", encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "done"]
    with pytest.raises(InvalidInput, match="outputFolder is missing"):
        logic.segmentAll(scans, model=model)


def test_paths_of_scans_are_as_their_folder(logic, model, volume, scan, tmp_path):
    sitk.WriteImage(itk(scan), tmp_path / "a.nii.gz")
    for path in (tmp_path / "a.nii.gz", str(tmp_path / "a.nii.gz")):
        (case,) = logic.segmentAll(iter([path]), tmp_path / "results", model=model, device="cpu")
    assert (case.name, case.status) == ("a", "kept")
    with pytest.raises(InvalidInput, match="outputFolder is missing"):
        logic.segmentAll([path], model=model)
    with pytest.raises(OutputError, match=r"a\.nii\.gz is a file; give a folder"):
        logic.segmentAll([path], path, model=model, device="cpu")
    for nodes in ([volume], [path, volume]):
        with pytest.raises(InvalidInput, match="outputFolder is for files"):
            logic.segmentAll(nodes, tmp_path / "results", model=model)


def test_the_self_test_segments_the_sample_head(load_module):
    load_module()
    module = sys.modules["DeepLabSeg"]
    module.DeepLabSegTest().runTest()
    (node,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    volumes = {
        node.GetSegmentation().GetSegment(name).GetName(): mask.sum() / 1000 for name, mask in masks(node).items()
    }
    assert 400 < volumes["Cerebral white matter"] < 800
    assert 500 < volumes["Cerebral cortex"] < 1100


def test_the_sample_is_one_click_away(load_module, monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    widget = load_module()
    widget.enter()
    widget.ui.sampleButton.click()
    assert widget.ui.inputSelector.currentNode().GetName() == "HeadT1Colin27"
    assert not widget.ui.sampleButton.visible


def test_the_sample_is_offered_to_the_module_sample_data(load_module, monkeypatch):
    registered = {}

    class SampleDataLogic:
        registerCustomSampleDataSource = staticmethod(registered.update)

    monkeypatch.setitem(sys.modules, "SampleData", type(sys)("SampleData"))
    sys.modules["SampleData"].SampleDataLogic = SampleDataLogic
    load_module()
    from DeepLabSegPanel.sample import register_sample

    register_sample()
    assert registered["sampleName"] == registered["nodeNames"] == "HeadT1Colin27"
    path = url2pathname(registered["uris"].removeprefix("file:"))
    assert registered["fileNames"] == Path(path).name, "Slicer reads a file by its ending"
    assert sitk.ReadImage(path).GetSize() == (181, 217, 181)
    assert Path(registered["thumbnailFileName"]).is_file()


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """A pure Python package that pip installs from `folder`."""
    info = f"{name}-{version}.dist-info"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in (files | {f"{info}/{file}": text for file, text in about.items()}).items():
            wheel.writestr(file, text)


@pytest.fixture
def missing_package(tmp_path, monkeypatch):
    """A package that pip can install from a folder, without a network, into a folder of the test's own."""
    wheels, target = tmp_path / "wheels", tmp_path / "installed"
    wheels.mkdir()
    target.mkdir()
    make_wheel(wheels, "tinytorch", "2.4", {"tinytorch.py": "here = True\n"})
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": wheels,
        "TARGET": target,
        "DISABLE_PIP_VERSION_CHECK": "1",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    monkeypatch.syspath_prepend(target)
    return "tinytorch"


@pytest.fixture
def panel(load_module, missing_package, monkeypatch, tmp_path):
    """The panel, which needs a package that is not there yet."""
    from packaging.requirements import Requirement

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    widget = load_module()
    widget.panel._requirements.append(Requirement(f"{missing_package}>=2"))
    widget.enter()
    return widget


def test_weights_are_not_looked_into_before_that_is_installed(panel, tmp_path):
    (tmp_path / "mine.pth").touch()
    choose_file(panel, tmp_path / "mine.pth")
    assert "doesn't tell: anything before tinytorch>=2 is installed" in panel.ui.modelMessageLabel.text
    assert not panel.panel.worker.isRunning, "nor is anything else asked"
    panel.panel._requirements.pop()
    panel.panel._onInstalled("")
    wait_until(lambda: "mine.pth" in panel.ui.modelMessageLabel.text, 60)


def test_what_can_not_be_run_is_not_installed_for(panel, slicer_window):
    panel.ui.segmentButton.click()
    assert "no volume is chosen" in panel.ui.statusLabel.text
    assert slicer_window.messages == []


def test_without_consent_nothing_is_installed(panel, volume, slicer_window, monkeypatch):
    monkeypatch.setattr("DeepLabSegPanel.torch_setup.has_pytorch_extension", lambda: False)
    slicer_window.confirms = False
    panel.ui.segmentButton.click()
    assert "tinytorch" in slicer_window.messages[0].text
    assert "install the extension PyTorch first" in slicer_window.messages[0].text
    assert "nothing was installed" in panel.ui.statusLabel.text
    assert panel.ui.segmentButton.text == "Segment"


def test_with_consent_it_is_installed_and_the_run_goes_on(panel, volume, slicer_window, tmp_path):
    panel.ui.modelComboBox.setCurrentIndex(panel.ui.modelComboBox.findData("head-mri-2d"))
    panel.ui.segmentButton.click()
    assert panel.ui.segmentButton.text == "Cancel"
    wait_until(lambda: "is ready" in panel.ui.statusLabel.text, 120)
    assert (tmp_path / "installed" / "tinytorch.py").is_file()
    assert "Successfully installed" in panel.ui.logTextEdit.plainText
    panel.ui.outputSelector.setCurrentNode(None)
    panel.ui.segmentButton.click()
    wait_until(lambda: panel.ui.segmentButton.text == "Segment", 60)
    assert len(slicer_window.messages) == 1, "it asks once"


def test_an_installation_that_fails_says_so(panel, volume, tmp_path):
    (tmp_path / "wheels" / "tinytorch-2.4-py3-none-any.whl").unlink()
    panel.ui.segmentButton.click()
    wait_until(lambda: panel.ui.segmentButton.text == "Segment", 60)
    assert "installation failed" in panel.ui.statusLabel.text
    assert "tinytorch" in panel.ui.logTextEdit.plainText


def test_what_can_not_be_started_is_said(panel, volume, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: "/nowhere/PythonSlicer")
    panel.ui.segmentButton.click()
    wait_until(lambda: panel.ui.segmentButton.text == "Segment", 60)
    assert "installation failed: /nowhere/PythonSlicer can't be started" in panel.ui.statusLabel.text


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a script")
def test_cancel_ends_pip_where_slicers_python_is_a_launchers_child(panel, volume, tmp_path, python_slicer):
    """As Slicer's own is: to kill it is to kill the launcher, whose child goes on installing."""
    python_slicer("import subprocess, sys\nsys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))")
    wheel = next((tmp_path / "wheels").iterdir())
    with zipfile.ZipFile(wheel, "a") as archive:
        for number in range(5000):  # so that it takes a while, as PyTorch does
            archive.writestr(f"tinytorch_data/{number}.txt", "x")
    panel.ui.segmentButton.click()
    wait_until(lambda: "Installing collected" in panel.ui.logTextEdit.plainText, 60)
    panel.ui.segmentButton.click()
    wait_until(lambda: panel.ui.segmentButton.text == "Segment", 10)
    assert "the installation was ended" in panel.ui.statusLabel.text
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "tinytorch>=2" not in running
    assert not (tmp_path / "installed" / "tinytorch.py").exists()


def test_pytorch_comes_as_its_extension_gets_it_with_the_window_alive(
    panel, volume, slicer_window, tmp_path, monkeypatch
):
    from packaging.requirements import Requirement

    monkeypatch.setattr("DeepLabSegPanel.torch_setup.has_pytorch_extension", lambda: True)
    make_wheel(
        tmp_path / "wheels",
        "light_the_torch",
        "0.8",
        {"light_the_torch/__main__.py": "import os, sys\nprint(*sys.argv[1:], os.environ['PIP_CONSTRAINT'])\n"},
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    panel.panel._requirements.insert(0, Requirement("torch>=99"))
    with EventLoopWatch() as watch:
        panel.ui.segmentButton.click()
        slicer_window.confirms = False  # the restart
        wait_until(lambda: panel.ui.segmentButton.text == "Segment", 60)
    assert watch.longest_gap_s < 0.5
    log = panel.ui.logTextEdit.plainText
    assert log.index("Successfully installed light-the-torch-0.8") < log.index("install torch>=99 file:")
    assert log.index("install torch>=99 file:") < log.index("Successfully installed tinytorch-2.4")
    assert "Restart Slicer" in panel.ui.statusLabel.text, "torch is not there yet"


def test_a_module_that_is_closed_while_it_installs_ends_in_peace(panel, volume):
    panel.ui.segmentButton.click()
    installer = panel.panel._installer
    panel.cleanup()
    wait_until(lambda: panel.panel._installer is None, 20)
    assert not Path(installer._folder.name).exists()


def test_where_pytorch_is_not_made_for_the_computer_nothing_is_asked(panel, volume, slicer_window, monkeypatch):
    from packaging.requirements import Requirement

    panel.panel._requirements.insert(0, Requirement("torch>=99"))
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    panel.ui.segmentButton.click()
    assert "torch>=99 doesn't exist for this Slicer" in panel.ui.statusLabel.text
    assert slicer_window.messages == []


def test_other_computers_and_other_packages_are_not_refused(load_module, monkeypatch):
    load_module()
    from DeepLabSegPanel.torch_setup import check_platform

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    check_platform(["h5py>=3"])
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    check_platform(["torch>=99"])


def test_pip_is_asked_for_what_is_missing_alone(load_module, monkeypatch):
    load_module()
    from DeepLabSegPanel.torch_setup import _steps

    pip = ["pip", "install", "--no-warn-script-location"]
    assert _steps(["torch>=2", "h5py"]) == [[*pip, "torch>=2", "h5py"]]
    monkeypatch.setattr("DeepLabSegPanel.torch_setup.has_pytorch_extension", lambda: True)
    with_extension = [[*pip, "light-the-torch>=0.5"], ["light_the_torch", "install", "torch>=2"]]
    assert _steps(["torch>=2"]) == with_extension
    assert _steps(["torch>=2", "h5py"]) == [*with_extension, [*pip, "h5py"]]
    assert _steps(["h5py"]) == [[*pip, "h5py"]]


@pytest.mark.parametrize(
    ("wanted", "is_there"),
    [
        ("numpy", True),
        (f"numpy>={np.__version__}", True),
        ("numpy<1", False),
        (f"torch>={torch.__version__.partition('+')[0]}", True),
        ("DeepLabSegPanel", True),
        ("DeepLabSegPanel>=1", False),
        ("nothing_of_that_name", False),
    ],
)
def test_a_package_is_there_in_the_version_that_is_wanted_or_is_missing(load_module, wanted, is_there):
    load_module()
    from packaging.requirements import Requirement

    from DeepLabSegPanel.torch_setup import missing

    assert missing([Requirement(wanted)]) == ([] if is_there else [wanted])


def test_a_nightly_torch_is_as_good(load_module, monkeypatch):
    load_module()
    from packaging.requirements import Requirement

    from DeepLabSegPanel.torch_setup import missing

    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.12.0.dev20260801+cu130")
    assert missing([Requirement("torch>=2.4")]) == []


def test_pip_finds_the_constraints_where_the_users_name_has_a_space(
    load_module, missing_package, tmp_path, monkeypatch
):
    load_module()
    from DeepLabSegPanel.torch_setup import _writeConstraints

    folder = tmp_path / "Zoë Doe"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONSTRAINT", _writeConstraints(str(folder)))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", missing_package]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_after_a_restart_it_says_where_it_was(load_module):
    from importlib import import_module

    load_module()
    torch_setup = import_module("DeepLabSegPanel.torch_setup")
    torch_setup.remember_run("Head", "head-mri-2d")
    again = load_module()
    assert "you were about to segment Head with head-mri-2d" in again.ui.statusLabel.text
    assert torch_setup.recall_run() is None


def test_after_a_restart_a_file_is_named_by_its_name(panel, volume, slicer_window, load_module, tmp_path):
    choose_file(panel, tmp_path / "mine.pth")
    slicer_window.confirms = False
    panel.panel._offerRestart(["torch"])
    assert "you were about to segment Head with mine.pth" in load_module().ui.statusLabel.text


def test_slicers_own_packages_are_kept(load_module, monkeypatch):
    load_module()
    from DeepLabSegPanel.torch_setup import KEPT, _constraints

    monkeypatch.setattr("DeepLabSegPanel.torch_setup.KEPT", ("nothing_of_that_name", *KEPT))
    assert f"numpy=={np.__version__}" in _constraints()
    for name in ("SimpleITK", "scipy"):
        assert f"{name}==" in _constraints()
