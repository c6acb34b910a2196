"""The stand-in keeps the rules of PythonQt and of Slicer that a panel depends on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import slicer
import vtk
from event_loop import EventLoopWatch, wait_until
from PIL import Image
from small_module import PANEL, write_module


@pytest.fixture
def qt(slicer_window):
    return sys.modules["qt"]


@pytest.fixture
def small(load_module, tmp_path):
    return load_module(write_module(tmp_path / "Small"))


def add_volume(name: str, node_class: str = "vtkMRMLScalarVolumeNode"):
    return slicer.mrmlScene.AddNewNodeByClass(node_class, name)


class TestPythonQt:
    @pytest.mark.parametrize(
        ("widget_class", "name", "value"),
        [
            ("QLineEdit", "text", "words"),
            ("QCheckBox", "checked", True),
            ("QPushButton", "enabled", False),
            ("QSpinBox", "value", 7),
            ("QLabel", "toolTip", "hint"),
            ("QWidget", "objectName", "panel"),
        ],
    )
    def test_a_property_is_read_and_written_as_an_attribute(self, qt, widget_class, name, value):
        widget = getattr(qt, widget_class)()
        if widget_class == "QCheckBox":
            assert widget.checked is False
        setattr(widget, name, value)
        assert getattr(widget, name) == value

    @pytest.mark.parametrize("name", ["text", "width", "enabled", "visible", "toolTip"])
    def test_calling_a_property_fails(self, qt, name):
        with pytest.raises(TypeError, match="not callable"):
            getattr(qt.QLineEdit(), name)()

    def test_a_property_that_a_static_method_hides_can_not_be_written(self, qt):
        timer = qt.QTimer()
        with pytest.raises(AttributeError, match="Slot 'singleShot' can not be overwritten"):
            timer.singleShot = True
        timer.setSingleShot(True)

    def test_an_empty_layout_counts_as_nothing(self, qt):
        layout = qt.QVBoxLayout()
        assert not layout
        layout.addWidget(qt.QLabel("something"))
        assert layout

    def test_methods_are_called(self, qt):
        box = qt.QComboBox()
        box.addItem("one", "first")
        box.addItems(("two", "three"))
        box.setCurrentIndex(2)
        assert (box.currentText, box.count, box.itemData(0)) == ("three", 3, "first")
        assert (box.findText("two"), box.findData("first"), box.findData("none")) == (1, 0, -1)

    def test_enums_are_ints_both_ways(self, qt):
        assert (qt.Qt.Checked, qt.QProcess.NotRunning, qt.QMessageBox.Yes | qt.QMessageBox.No) == (2, 0, 0x14000)
        label = qt.QLabel("words")
        label.setAlignment(qt.Qt.AlignRight | qt.Qt.AlignTop)
        assert label.alignment == 0x22
        box = qt.QCheckBox()
        box.setCheckState(qt.Qt.Checked)
        assert box.checkState() == 2
        assert box.sizePolicy.horizontalPolicy() == qt.QSizePolicy.Minimum
        box.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        assert box.sizePolicy.horizontalPolicy() == qt.QSizePolicy.Ignored

    def test_an_object_name_is_also_its_name(self, qt):
        widget = qt.QWidget()
        widget.name = "panel"
        assert (widget.name, widget.objectName) == ("panel", "panel")

    def test_a_widget_takes_no_new_attributes(self, qt):
        with pytest.raises(AttributeError, match="no property colour"):
            qt.QLabel().colour = "red"
        with pytest.raises(AttributeError):
            qt.QLabel().colour  # noqa: B018
        with pytest.raises(AttributeError, match="read-only"):
            qt.QLabel().width = 3

    def test_dynamic_properties_are_set_by_method_and_then_read_as_attributes(self, qt):
        label = qt.QLabel()
        label.setProperty("SlicerParameterName", "scan")
        assert (label.property("SlicerParameterName"), label.SlicerParameterName) == ("scan", "scan")
        assert label.property("other") is None

    def test_signals_connect_by_signature_and_pass_what_the_slot_names(self, qt):
        button, heard = qt.QPushButton(), []
        button.checkable = True
        without = lambda: heard.append("nothing")  # noqa: E731
        assert button.connect("clicked()", without)
        button.connect("clicked(bool)", lambda: heard.append("fewer"))
        button.connect("clicked( bool )", lambda checked: heard.append(checked))
        button.toggled.connect(lambda *args: heard.append(args))
        button.click()
        assert sorted(map(str, heard)) == ["(True,)", "True", "fewer", "nothing"]
        heard.clear()
        assert button.disconnect("clicked()", without)
        assert not button.disconnect("clicked()", without)
        button.animateClick()
        wait_until(lambda: "fewer" in heard)
        assert "nothing" not in heard

    def test_bound_methods_are_slots_too(self, qt):
        button, box = qt.QPushButton(), qt.QComboBox()
        heard = []
        box.connect("currentIndexChanged(int)", heard.append)
        box.addItems(["a", "b"])
        button.connect("clicked()", box.clear)
        button.click()
        assert (heard, box.count) == ([0, -1], 0)

    def test_an_unknown_signal_is_an_error(self, qt):
        with pytest.raises(ValueError, match="QPushButton has no signal clocked"):
            qt.QPushButton().connect("clocked()", print)

    def test_blocked_signals_stay_away(self, qt):
        edit, heard = qt.QLineEdit(), []
        edit.connect("textChanged(QString)", heard.append)
        before = edit.blockSignals(True)
        edit.text = "silent"
        edit.blockSignals(before)
        edit.text = "loud"
        assert heard == ["loud"]

    def test_timers_fire(self, qt):
        heard, timer = [], qt.QTimer()
        timer.interval = 5
        timer.connect("timeout()", lambda: heard.append("tick"))
        timer.start()
        qt.QTimer.singleShot(0, lambda: heard.append("once"))
        wait_until(lambda: heard.count("tick") > 2)
        timer.stop()
        assert heard[0] == "once"
        assert not timer.active

    def test_wrappers_of_one_object_are_equal(self, qt):
        panel = qt.QWidget()
        layout = qt.QVBoxLayout(panel)
        label = qt.QLabel("words")
        label.objectName = "words"
        layout.addWidget(label)
        assert panel.children() == (layout, label)
        assert panel.findChild(qt.QLabel, "words") == label
        assert panel.findChildren(qt.QWidget) == (label,)
        assert label.parent() == panel != label
        assert panel.layout() == layout
        assert len({label, layout.itemAt(0).widget()}) == 1
        assert type(label) is qt.QLabel
        assert isinstance(label, qt.QWidget)

    def test_a_deleted_widget_is_known_by_an_error(self, qt):
        parent = qt.QWidget()
        child = qt.QLabel("words", parent)
        parent.deleteLater()
        wait_until(lambda: not child)
        with pytest.raises(ValueError, match="deleted"):
            child.text  # noqa: B018

    def test_file_dialogs_give_a_plain_path(self, qt, monkeypatch):
        from PySide6.QtWidgets import QFileDialog

        def getOpenFileName(*_args):
            return "/data/model.safetensors", "All (*)"

        monkeypatch.setattr(QFileDialog, "getOpenFileName", getOpenFileName)
        assert qt.QFileDialog.getOpenFileName(None, "Open", "", "All (*)") == "/data/model.safetensors"

    def test_a_process_talks_in_bytes(self, qt):
        process, heard = qt.QProcess(), []
        process.connect("readyReadStandardOutput()", lambda: heard.append(process.readAllStandardOutput().data()))
        process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: heard.append((code, status)))
        process.start(sys.executable, ["-c", "print(input(), flush=True)"])
        process.write(b"hello\n")
        wait_until(lambda: process.state() == qt.QProcess.NotRunning)
        assert heard.pop() == (0, qt.QProcess.NormalExit)
        assert b"".join(heard) == b"hello\n"

    def test_settings_last_for_one_test(self, qt):
        assert slicer.app.userSettings().value("DeepLabSeg/folder") is None
        qt.QSettings().setValue("DeepLabSeg/folder", "/data")
        assert slicer.util.settingsValue("DeepLabSeg/folder", "") == "/data"

    def test_an_error_in_a_slot_is_kept_for_the_test(self, qt, slicer_window):
        button = qt.QPushButton()
        button.connect("clicked()", lambda: 1 / 0)
        button.click()
        assert [type(error) for error in slicer_window.take_errors()] == [ZeroDivisionError]


class TestNodeSelector:
    @pytest.fixture
    def selector(self, slicer_window):
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        return selector

    def test_it_follows_the_scene(self, selector):
        first = add_volume("First")
        selector.setMRMLScene(slicer.mrmlScene)
        assert selector.currentNode() is first
        second = add_volume("Second")
        assert (selector.nodeCount(), selector.currentNode()) == (2, first)
        slicer.mrmlScene.RemoveNode(first)
        assert (selector.nodeCount(), selector.currentNode()) == (1, second)
        slicer.mrmlScene.Clear(False)
        assert (selector.nodeCount(), selector.currentNode(), selector.currentNodeID) == (0, None, "")

    def test_it_takes_the_first_node_that_comes(self, selector):
        heard = []
        selector.setMRMLScene(slicer.mrmlScene)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
        selector.connect("currentNodeChanged(bool)", heard.append)
        node = add_volume("Scan")
        assert selector.currentNode() is node
        assert heard == [node, True]

    def test_none_is_a_choice_where_it_is_enabled(self, selector):
        selector.noneEnabled = True
        selector.setMRMLScene(slicer.mrmlScene)
        node = add_volume("Scan")
        assert selector.currentNode() is None
        selector.setCurrentNode(node)
        assert (selector.currentNode(), selector.nodeCount()) == (node, 1)
        selector.setCurrentNode(None)
        assert selector.currentNode() is None

    def test_child_types_and_hidden_nodes_are_left_out(self, selector):
        selector.setMRMLScene(slicer.mrmlScene)
        label_map = add_volume("Labels", "vtkMRMLLabelMapVolumeNode")
        assert selector.nodeCount() == 1
        selector.showChildNodeTypes = False
        assert selector.nodeCount() == 0
        selector.showChildNodeTypes = True
        label_map.SetHideFromEditors(True)
        assert selector.nodeCount() == 0

    def test_a_new_name_is_shown(self, selector):
        selector.setMRMLScene(slicer.mrmlScene)
        add_volume("Before").SetName("After")
        assert selector.findChild(sys.modules["qt"].QComboBox).currentText == "After"

    def test_the_user_can_add_a_node(self, selector):
        heard = []
        selector.baseName = "Fresh"
        selector.setMRMLScene(slicer.mrmlScene)
        selector.connect("nodeAddedByUser(vtkMRMLNode*)", heard.append)
        node = selector.addNode()
        assert (heard, selector.currentNode(), node.GetName()) == ([node], node, "Fresh")

    def test_a_node_chosen_before_the_scene_is_known_stays_chosen(self, selector):
        add_volume("First")
        second = add_volume("Second")
        selector.setCurrentNode(second)
        selector.setMRMLScene(slicer.mrmlScene)
        assert selector.currentNode() is second

    def test_several_nodes_can_be_checked(self, slicer_window):
        selector, heard = slicer.qMRMLCheckableNodeComboBox(), []
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.setMRMLScene(slicer.mrmlScene)
        first, _, third = (add_volume(name) for name in ("A", "B", "C"))
        selector.connect("checkedNodesChanged()", lambda: heard.append("changed"))
        for node in (first, third, third):
            selector.setCheckState(node, sys.modules["qt"].Qt.Checked)
        assert (selector.checkedNodes(), len(heard)) == ((first, third), 2)


class TestCtk:
    def test_a_path_is_kept_for_the_next_time(self, qt):
        ctk, heard = sys.modules["ctk"], []
        edit = ctk.ctkPathLineEdit()
        edit.connect("currentPathChanged(QString)", heard.append)
        edit.settingKey = "DeepLabSeg/models"
        edit.currentPath = "/data/model"
        edit.addCurrentPathToHistory()
        assert heard == ["/data/model"]
        again = ctk.ctkPathLineEdit()
        again.settingKey = "DeepLabSeg/models"
        assert again.findChild(qt.QComboBox).itemText(0) == "/data/model"

    def test_a_slider_and_its_box_agree(self, qt):
        slider, heard = sys.modules["ctk"].ctkSliderWidget(), []
        slider.minimum, slider.maximum, slider.singleStep = 0, 1, 0.25
        slider.connect("valueChanged(double)", heard.append)
        slider.value = 0.5
        assert slider.findChild(qt.QSlider).value == 2
        slider.findChild(qt.QSlider).setValue(3)
        assert (slider.value, heard) == (0.75, [0.5, 0.75])

    def test_a_setter_that_is_no_slot_is_not_there(self, slicer_window):
        ctk = sys.modules["ctk"]
        for widget, setter in (
            (ctk.ctkSliderWidget(), "setMinimum"),
            (ctk.ctkPathLineEdit(), "setNameFilters"),
            (ctk.ctkCollapsibleButton(), "setCollapsed"),
            (slicer.qMRMLNodeComboBox(), "setNodeTypes"),
        ):
            assert not hasattr(widget, setter)

    def test_a_section_hides_its_contents_when_closed(self, qt):
        section = sys.modules["ctk"].ctkCollapsibleButton()
        layout = qt.QVBoxLayout(section)
        label = qt.QLabel("words")
        layout.addWidget(label)
        section.show()
        height = section.sizeHint.height()
        section.click()
        assert (section.collapsed, label.visible) == (True, False)
        assert section.sizeHint.height() < height
        section.collapsed = False
        assert label.visible


class TestLoadUi:
    def test_what_the_panel_names_is_there_and_nothing_else(self, small):
        assert small.ui.applyButton.text == "Apply"
        assert small.ui.weightsEdit.filters == sys.modules["ctk"].ctkPathLineEdit.Files
        with pytest.raises(AttributeError):
            small.ui.nothing  # noqa: B018

    def test_the_scene_reaches_the_selectors(self, small):
        node = add_volume("Scan")
        assert small.ui.scanSelector.currentNode() is node
        assert small.ui.scanSelector.enabled

    @pytest.mark.parametrize(
        ("right", "wrong", "message"),
        [
            ("name='noneDisplay'", "name='noneDisplayed'", "has no property noneDisplayed"),
            ("mrmlSceneChanged(", "mrmlSceneSwapped(", "has no signal mrmlSceneSwapped"),
            ("<slot>setMRMLScene", "<slot>setScene", "no attribute 'setScene'"),
            ("ctkSliderWidget", "ctkDial", "has no ctkDial"),
            ("<receiver>scanSelector", "<receiver>scans", "names scans"),
        ],
    )
    def test_a_slip_in_the_ui_file_is_an_error(self, slicer_window, tmp_path, right, wrong, message):
        file = write_module(tmp_path / "Small", PANEL.replace(right, wrong))
        with pytest.raises((ValueError, AttributeError), match=message):
            slicer.util.loadUI(str(file.parent / "Resources" / "UI" / "Small.ui"))


class TestParameterNode:
    def test_the_panel_shows_the_defaults(self, small):
        ui = small.ui
        assert (ui.overlapSlider.value, ui.overlapSlider.maximum, ui.threadsBox.value) == (0.25, 0.9, 4)
        assert (ui.smoothBox.checked, ui.titleEdit.text, ui.speedBox.currentText) == (True, "Result", "exact")
        assert (ui.deviceBox.currentText, ui.deviceBox.count) == ("Graphics card", 2)
        assert (small.parameters.names, small.parameters.pair) == ([], ("a", 1))

    def test_panel_and_node_follow_each_other(self, small):
        ui, parameters = small.ui, small.parameters
        ui.smoothBox.click()
        ui.titleEdit.text = "Mine"
        ui.threadsBox.setValue(2)
        ui.overlapSlider.value = 0.5
        ui.weightsEdit.currentPath = "/data/model"
        ui.deviceBox.setCurrentIndex(0)
        ui.speedBox.currentText = "fast"
        values = (parameters.smooth, parameters.title, parameters.threads, parameters.overlap, parameters.weights)
        assert values == (False, "Mine", 2, 0.5, Path("/data/model"))
        assert (parameters.device.value, parameters.speed) == ("cpu", "fast")
        parameters.title, parameters.speed, parameters.overlap = "Yours", "exact", 0.1
        assert (ui.titleEdit.text, ui.speedBox.currentText, ui.overlapSlider.value) == ("Yours", "exact", 0.1)
        assert small.changes > 6

    def test_nodes_are_kept_as_references(self, small):
        scan, result = add_volume("Scan"), add_volume("Result", "vtkMRMLSegmentationNode")
        assert small.parameters.scan is scan
        small.parameters.result = result
        assert small.ui.resultSelector.currentNode() is result
        assert small.parameters.parameterNode.GetNodeReference("scan.0") is scan
        assert small.parameters.parameterNode.GetNodeReference("result") is result
        small.ui.resultSelector.setCurrentNode(None)
        assert small.parameters.result is None
        slicer.mrmlScene.RemoveNode(scan)
        assert small.parameters.scan is None

    def test_values_survive_saving_the_scene(self, small, tmp_path):
        small.parameters.scan = add_volume("Scan")
        small.parameters.title = "Mine"
        small.parameters.names.append("Brain")
        slicer.mrmlScene.Commit(str(tmp_path / "scene.mrml"))
        slicer.mrmlScene.Clear(False)
        assert (small.ui.messageLabel.text, small.parameters.title, small.parameters.scan) == ("closed", "Result", None)
        slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
        slicer.mrmlScene.Import()
        again = type(small.parameters)(small.logic.getParameterNode())
        assert (again.title, again.scan.GetName(), again.names) == ("Mine", "Scan", ["Brain"])

    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("overlap", 2.0, ValueError),
            ("overlap", "0.5", TypeError),
            ("threads", None, TypeError),
            ("speed", "slow", ValueError),
            ("device", "cpu", TypeError),
            ("scan", "Scan", TypeError),
            ("title", None, TypeError),
            ("weights", "/data", TypeError),
        ],
    )
    def test_a_value_that_does_not_fit_is_refused(self, small, name, value, error):
        before = getattr(small.parameters, name)
        with pytest.raises(error):
            setattr(small.parameters, name, value)
        assert getattr(small.parameters, name) == before

    def test_a_widget_that_slicer_would_not_bind_is_refused(self, small):
        with pytest.raises(RuntimeError, match="binds no ctkPathLineEdit"):
            small.parameters.connectParametersToGui({"title": small.ui.weightsEdit})
        with pytest.raises(ValueError, match="no parameter is named nothing"):
            small.parameters.connectParametersToGui({"nothing": small.ui.titleEdit})

    def test_a_reserved_name_or_an_unknown_type_is_refused(self, slicer_window):
        from slicer.parameterNodeWrapper import parameterNodeWrapper

        with pytest.raises(ValueError, match="uses the names default itself"):
            parameterNodeWrapper(type("Bad", (), {"__annotations__": {"default": str}}))
        with pytest.raises(TypeError, match="keeps no"):
            parameterNodeWrapper(type("Bad", (), {"__annotations__": {"names": tuple[str, ...]}}))

    def test_a_disconnected_panel_no_longer_follows(self, small):
        small.parameters.disconnectGui(small.tag)
        small.ui.titleEdit.text = "Mine"
        assert small.parameters.title == "Result"
        small.parameters.title = "Yours"
        assert small.ui.titleEdit.text == "Mine"


class TestSlicer:
    def test_a_click_runs_the_module(self, small):
        add_volume("Scan")
        small.ui.applyButton.click()
        assert small.ui.messageLabel.text == "Scan done"

    def test_an_error_is_shown_and_raised_again(self, small, slicer_window):
        small.ui.applyButton.click()
        assert [message.text for message in slicer_window.messages] == ["It failed.\n\nchoose a scan"]
        assert [str(error) for error in slicer_window.take_errors()] == ["choose a scan"]

    def test_in_testing_mode_an_error_is_only_raised(self, small, slicer_window):
        slicer.app.setTestingEnabled(True)
        small.ui.applyButton.click()
        assert slicer_window.messages == []
        assert len(slicer_window.take_errors()) == 1

    @pytest.mark.parametrize("answer", [True, False])
    def test_questions_are_answered_as_the_test_says(self, slicer_window, answer):
        slicer_window.confirms = answer
        assert slicer.util.confirmOkCancelDisplay("Go on?") is answer
        assert slicer.util.confirmYesNoDisplay("Sure?") is answer
        slicer.util.infoDisplay("Done")
        assert [message.text for message in slicer_window.messages] == ["Go on?", "Sure?", "Done"]
        icons = sys.modules["qt"].QMessageBox
        assert [message.icon for message in slicer_window.messages] == [
            *(icons.Question, icons.Question),
            icons.Information,
        ]

    def test_what_acts_on_views_is_written_down(self, slicer_window):
        node = add_volume("Scan")
        slicer.util.setSliceViewerLayers(background=node, fit=True)
        slicer.util.selectModule("Data")
        assert slicer_window.calls == [
            ("setSliceViewerLayers", (), {"background": node, "fit": True}),
            ("selectModule", ("Data",), {}),
        ]

    def test_the_application_says_when_it_quits(self, slicer_window):
        heard = []
        slicer.app.connect("aboutToQuit()", lambda: heard.append("quit"))
        slicer.app.aboutToQuit.emit()
        assert heard == ["quit"]
        assert slicer.util.mainWindow().objectName == "qSlicerMainWindow"

    def test_temporary_folders_are_the_tests_own(self, slicer_window, tmp_path):
        assert Path(slicer.util.tempDirectory()).parent == tmp_path

    def test_the_self_test_of_a_module_runs(self, small, slicer_window):
        sys.modules["Small"].SmallTest().runTest()
        assert slicer_window.calls == [("delayDisplay", ("nothing", 100), {})]

    def test_a_module_is_found_by_name(self, small):
        assert slicer.util.getModuleWidget("Small") is small
        assert slicer.util.getModuleLogic("Small") is small.logic
        assert slicer.modules.small.widgetRepresentation().self() is small

    def test_the_wait_cursor_comes_and_goes(self, qt):
        for wait in (slicer.util.WaitCursor(), slicer.util.tryWithErrorDisplay(waitCursor=True)):
            with wait:
                assert qt.QApplication.overrideCursor().shape() == qt.Qt.WaitCursor
            assert qt.QApplication.overrideCursor() is None

    def test_a_scene_has_its_subject_hierarchy(self, slicer_window):
        assert slicer.mrmlScene.GetSubjectHierarchyNode() is not None

    def test_it_is_gone_after_the_test(self, qt_app, tmp_path):
        from window import SlicerWindow

        path = list(sys.path)
        window = SlicerWindow(tmp_path)
        window.install()
        window.load_module(write_module(tmp_path / "Small"))
        window.remove()
        names = ("app", "modules", "mrmlScene", "parameterNodeWrapper", "qMRMLNodeComboBox")
        assert [name for name in names if hasattr(slicer, name)] == []
        assert {"qt", "ctk", "Small", "slicer.i18n", "slicer.parameterNodeWrapper"}.isdisjoint(sys.modules)
        assert sys.path == path
        assert slicer.util.messageBox.__module__ == "slicer.util"
        assert vtk.vtkObject is not None


def test_the_watch_sees_a_blocked_event_loop(slicer_window):
    with EventLoopWatch() as calm:
        end = time.monotonic() + 0.1
        wait_until(lambda: time.monotonic() > end)
    with EventLoopWatch() as blocked:
        time.sleep(1.0)  # long enough for a machine that is busy otherwise
    assert calm.longest_gap_s < 0.9 < blocked.longest_gap_s


def test_waiting_in_vain_is_an_error(slicer_window):
    with pytest.raises(TimeoutError):
        wait_until(lambda: False, timeout_s=0.02)


def test_a_screenshot_shows_the_panel_with_its_letters(small, screenshot):
    add_volume("Head scan")
    small.parent.resize(420, 480)
    path = screenshot(small.parent, "small")
    picture = Image.open(path)
    assert picture.size == (420, 480)
    assert len(picture.convert("L").getcolors(256)) > 50
