"""The panel's part on models: what is there, what the chosen one says of itself, and what a person must still say."""

import html
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from DeepLabSegLib import catalog
from DeepLabSegLib.catalog import ModelCard
from DeepLabSegLib.errors import DeepLabSegError, InvalidInput
from DeepLabSegLib.texts import parse_names, parse_sizes, parse_spacing
from DeepLabSegPanel import combo
from DeepLabSegPanel.tones import BAD, DOUBT, PLAIN, paint, tell_or_hide
from DeepLabSegPanel.worker_process import Answer, WorkerProcess

DEPTHS = (3, 4, 5)
NORMALIZATIONS = ("none", "zscore", "percentile:0.5:99.5", "window:-160:240")
LOOK_AFTER_MS = 300
FILE = ""
"""Value of the entry that stands for a file."""
ENDED = ("Cancelled", "WorkerDied")
"""Kinds of error that the end of the worker brings."""


class ModelSection:
    """Shows the model that the parameter node names, and fills and locks what its file tells.

    `onChanged()` is called when more is known about the model. `missing()` gives the packages without which the worker
    can't open the file.
    """

    def __init__(
        self, ui: Any, worker: WorkerProcess, missing: Callable[[], list[str]], onChanged: Callable[[], None]
    ) -> None:
        self.ui = ui
        self.card: ModelCard | None = None
        self.problem = ""
        self._worker = worker
        self._missing = missing
        self._onChanged = onChanged
        self._parameters: Any = None
        self._shown: Any = None
        self._isWeights = False
        self._assumed: list[str] = []
        self._looking = 0
        self._state: object = None
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(LOOK_AFTER_MS)
        self._timer.connect("timeout()", self._look)
        families = catalog.ENCODERS.items()
        combo.fill(ui.encoderComboBox, [entry for family, names in families for entry in _family(family, names)])
        combo.fill(ui.depthComboBox, [(str(depth), depth) for depth in DEPTHS])
        combo.fill(ui.dimensionsComboBox, [(_("2D, slice by slice"), 2), (_("3D"), 3)])
        combo.fill(ui.activationComboBox, [(_("by the labels"), ""), ("softmax", "softmax"), ("sigmoid", "sigmoid")])
        combo.fill(ui.normalizationComboBox, [(text, text) for text in NORMALIZATIONS])
        ui.normalizationComboBox.setEditText("")
        ui.normalizationComboBox.lineEdit().setPlaceholderText(_("please choose"))

    def stop(self) -> None:
        """Look into no file any more."""
        self._timer.stop()

    def refresh(self) -> None:
        """Look again which models are there."""
        self._shown = None
        entries = [(name, name) for name in sorted(catalog.installed_models(), key=_defaultFirst)]
        combo.fill(self.ui.modelComboBox, [*entries, (_("A file …"), FILE)])

    def show(self, parameters: Any) -> None:
        """Bring this part of the panel up to what `parameters` say."""
        self._parameters = parameters
        combo.choose(self.ui.modelComboBox, parameters.model, _("{name} (missing)").format(name=parameters.model))
        isFile = parameters.model == FILE
        self.ui.weightsPathLabel.visible = isFile
        self.ui.weightsPathLineEdit.visible = isFile
        if isFile and self.ui.weightsPathLineEdit.currentPath != parameters.weightsPath:
            self.ui.weightsPathLineEdit.currentPath = parameters.weightsPath
        combo.choose(self.ui.activationComboBox, parameters.activation)
        if self.ui.normalizationComboBox.currentText != parameters.normalization:
            self.ui.normalizationComboBox.setEditText(parameters.normalization)
        shown = (parameters.model, parameters.weightsPath, *(str(getattr(parameters, name)) for name in SAID))
        if shown != self._shown:
            self._shown = shown
            self._read()
        self._lock()

    def choice(self) -> dict[str, Any]:
        """The chosen model as the JSON of `ModelChoice`. Raises `InvalidInput` where something is missing."""
        if self._state != self._stateNow():  # the file has come, or is another one by now
            self._read()
            self._onChanged()
        if self.problem:
            raise InvalidInput(self.problem)
        parameters = self._parameters
        choice = {
            "model": parameters.model or str(typed_path(parameters.weightsPath)),
            "device": parameters.device,
            "precision": parameters.precision,
        }
        return choice | (self._weightsChoice() if self._isWeights else {})

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        self.card, self.problem, self._assumed, self._isWeights = None, "", [], False
        self._looking = 0
        self._timer.stop()
        self._state = self._stateNow()
        try:
            path = self._path()
            if catalog.is_bundle(path):
                self.card = catalog.read_card(path)
            else:
                self._isWeights = True
                self._lookSoon()
        except (DeepLabSegError, OSError) as error:
            self.problem = str(error)
        self.ui.networkCollapsibleButton.collapsed = not self._isWeights
        self._tell()

    def _stateNow(self) -> object:
        """Changes when the chosen file does."""
        try:
            return catalog.model_state(self._path())
        except (DeepLabSegError, OSError):
            return None

    def _path(self) -> Path:
        parameters = self._parameters
        if parameters.model != FILE:
            return catalog.find_model(parameters.model)
        if not parameters.weightsPath.strip():
            raise InvalidInput(_("no file is chosen; choose weights, or the model.json of a model's folder"))
        path = typed_path(parameters.weightsPath)
        if not path.exists():
            raise InvalidInput(_("{path} does not exist; choose another file").format(path=path))
        return path

    def _lookSoon(self) -> None:
        packages = self._missing()
        if packages:
            self._assumed = [
                _("anything before {packages} is installed, which Segment offers to do").format(
                    packages=", ".join(packages)
                )
            ]
        else:
            self._timer.start()

    def _look(self) -> None:
        try:
            choice = {"model": str(typed_path(self._parameters.weightsPath))} | self._weightsChoice()
        except InvalidInput as error:
            self.problem = str(error)
            self._tell()
            self._onChanged()
            return
        self._looking = self._worker.request("describe", self._onDescribed, choice=choice)
        self._tell()

    def _onDescribed(self, answer: Answer) -> None:
        if answer["id"] != self._looking:
            return  # of a file that was chosen before
        self._looking = 0
        if "error" in answer:
            self.problem = answer["error"]["message"]
            if answer["error"]["kind"] in ENDED:
                self._state = None  # that says nothing of the file, which the next click looks into again
        else:
            self.card = catalog.to_card(answer["result"]["model"])
            self._assumed = answer["result"]["assumed"]
        self._tell()
        self._lock()
        self._onChanged()

    # --- what a person says of weights -------------------------------------------------------------------------------

    def _weightsChoice(self) -> dict[str, Any]:
        parameters = self._parameters
        said: dict[str, Any] = {"network": {}}
        if parameters.labels.strip():
            said["labels"] = parse_names(parameters.labels)
        if parameters.normalization.strip():
            said["normalization"] = parameters.normalization.strip().lower()
        if parameters.orientation.strip():
            said["orientation"] = "".join(parameters.orientation.split()).upper()
        if parameters.spacing.strip():
            said["spacing"] = list(parse_spacing(parameters.spacing))
        if ("orientation" in said or "spacing" in said) and "normalization" not in said:
            raise InvalidInput(_("say under Intensities how voxel values went into training"))
        if parameters.activation:
            said["network"]["classifier_activation"] = parameters.activation
        if parameters.dilationRates.strip():
            said["network"]["decoder_dilation_rates"] = list(parse_sizes(parameters.dilationRates))
        if parameters.encoder:
            said["network"]["encoder_name"] = parameters.encoder
        if parameters.depth:
            said["network"]["encoder_depth"] = parameters.depth
        return said

    # --- showing -----------------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        """Fill what is known, and lock what is certain."""
        card = self.card
        assumed = self._namesAssumed()
        ui = self.ui
        ui.weightsFrame.visible = self._isWeights
        ui.encoderComboBox.enabled = self._isWeights and (card is None or "encoder_name" in assumed)
        ui.depthComboBox.enabled = self._isWeights and (card is None or "encoder_depth" in assumed)
        ui.dimensionsComboBox.enabled = False
        network = None if card is None else card.network
        combo.choose(ui.encoderComboBox, network.encoder_name if network else self._parameters.encoder)
        combo.choose(ui.depthComboBox, network.encoder_depth if network else self._parameters.depth)
        combo.choose(ui.dimensionsComboBox, network.dims if network else 0)
        ui.classesValueLabel.text = "" if card is None else str(card.network.num_classes)
        ui.channelsValueLabel.text = (
            "" if card is None else f"{len(card.input.channels)} ({', '.join(card.input.channels)})"
        )

    def _namesAssumed(self) -> set[str]:
        """The network's arguments that its file doesn't tell; each remark begins with one."""
        return {remark.split(" ")[0] for remark in self._assumed}

    def _tell(self) -> None:
        label = self.ui.modelMessageLabel
        text = self.problem
        if not text and self._looking:
            text = _("Looking into the file …")
        if not text and self._assumed:
            things = (thing.removeprefix("decoder_").replace("_", " ") for thing in self._assumed)
            text = _("The file doesn't tell: {things}.").format(things="; ".join(things))
        tell_or_hide(label, text, BAD if self.problem else DOUBT)
        card = self.card
        description = "" if card is None else card.description
        self.ui.modelDescriptionLabel.text = description
        self.ui.modelDescriptionLabel.visible = bool(description)
        self.ui.modelInfoLabel.text = "" if card is None else card_html(card)
        self.ui.aboutCollapsibleButton.visible = card is not None
        assumed = self._namesAssumed()
        said = {
            "labelsLineEditLabel": bool(self._parameters.labels.strip()),
            "activationComboBoxLabel": "classifier_activation" not in assumed,
            "normalizationComboBoxLabel": bool(self._parameters.normalization.strip()),
            "dilationLineEditLabel": "decoder_dilation_rates" not in assumed,
        }
        for name, isSaid in said.items():
            paint(getattr(self.ui, name), PLAIN if isSaid else DOUBT)


SAID = {
    "labels": "",
    "normalization": "",
    "spacing": "",
    "orientation": "",
    "activation": "",
    "dilationRates": "",
    "encoder": "",
    "depth": 0,
}
"""Parameters by which a person says what bare weights don't tell -> their value where nothing is said."""

DICE = ", Dice"
"""What a model card's figures end with that stand beside their segment."""


def card_html(card: ModelCard) -> str:
    """What the model says of itself beside its description, for reading."""
    figures = dict(card.figures)
    legend = []
    for segment in card.labels:
        measured = figures.pop(f"{segment.name}{DICE}", None)
        text = segment.name if measured is None else f"{segment.name} ({measured:.2f})"
        color = f"<span style='color:rgb{segment.color}'>&#9632;</span>"
        legend.append(f"{color}&nbsp;{html.escape(text).replace(' ', '&nbsp;')}")
    others = "; ".join(f"{name} {value:.3g}" for name, value in figures.items())
    rows = [
        (_("Segments") if len(figures) == len(card.figures) else _("Segments (Dice)"), "&nbsp;&nbsp; ".join(legend)),
        (_("Trained on"), html.escape(card.training_data)),
        (_("Licence"), html.escape(card.license)),
        *([(_("Measured"), html.escape(others))] if others else []),
        *([(_("Limits"), html.escape(card.limits))] if card.limits else []),
    ]
    table = "".join(f"<tr><td><b>{name}:</b>&nbsp;</td><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{table}</table>"


def typed_path(text: str) -> Path:
    """A path as people type and paste it: with blanks around, in quotes, from the home folder."""
    path = Path(text.strip().strip("\"'"))
    with suppress(RuntimeError):  # the home of nobody here
        path = path.expanduser()
    with suppress(OSError):  # Slicer works in a folder that is gone, see worker_process
        path = path.absolute()
    return path


def _family(family: str, names: tuple[str, ...]) -> list[tuple[str, str | None]]:
    return [(f"— {family} —", None), *((name, name) for name in names)]


def _defaultFirst(name: str) -> tuple[bool, str]:
    return name != catalog.DEFAULT_MODEL, name.lower()
