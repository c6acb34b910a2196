"""The one idea of the project: a segmentation is a pure function of an image, a model and options."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from DeepLabSegLib.bundle import Bundle, ModelInput, digest, read_bundle, read_network
from DeepLabSegLib.catalog import find_model, is_bundle
from DeepLabSegLib.checks import check_choice, is_count, kind_of
from DeepLabSegLib.devices import PRECISIONS, choose_device, choose_precision, is_gpu, list_devices, memory_of
from DeepLabSegLib.errors import Cancelled, InvalidInput
from DeepLabSegLib.image import SCORE_MAPS, Geometry, Image, Labels, Segment
from DeepLabSegLib.ladder import next_step, on_cpu, out_of_memory, release
from DeepLabSegLib.models.activations import ACTIVATIONS
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.optimize import FastForm, FastForms
from DeepLabSegLib.passage import Decision, Passage
from DeepLabSegLib.postprocess import end_label, keep_largest_piece, keep_rim
from DeepLabSegLib.preprocess import LETTERS, Scaling, check_voxels, model_grid
from DeepLabSegLib.region import Region, crop
from DeepLabSegLib.streaming import Found, run
from DeepLabSegLib.tiling import Activation, Blending, Tiling, mirrorings
from DeepLabSegLib.weights.convert import convert

__all__ = ["OnProgress", "Progress", "SegmentOptions", "Segmenter", "load_model"]

SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Slice direction -> the RAS axis that the slices are stacked along."""

MAX_GRID_VOXELS = 2**30
MAX_WINDOWS = 2**22
CPU_AT_ONCE = {2: 8, 3: 1}
"""Dimensions -> the most windows that go through the network together on a CPU, which gains nothing from more."""

GPU_AT_ONCE = 8
"""The same on a GPU, at least. Small maps leave most of it idle, so of many windows more go together."""

GPU_VOXELS, NUMBERS_PER_VOXEL = 2**25, 128
"""The most voxels that a GPU takes at once, and the numbers for each of which it must have room."""

REGION_MARGIN = 3
"""With 2, 1.4 to 1.6 times as many labels in a box of 60 mm differ from those of the whole head (4 gives no less)."""


@dataclass(frozen=True)
class SegmentOptions:
    """What a run may vary; the defaults are the model's own.

    Attributes
    ----------
    tile : sizes of one window, per spatial axis of the network; None takes the model's. What is larger than the scan,
        and than the model's, is cut down.
    overlap : share of a tile that neighbours have in common, 0 up to 0.9.
    blending : how overlapping tiles are weighed, "gaussian" or "constant".
    slice_axis : "axial", "coronal" or "sagittal" slices for a 2D network; None takes the model's.
    threshold : score from which a voxel belongs to a label, for sigmoid networks; others take none but the default.
    mirror : average the scores over the mirror images of each window, along the axes of which the model says that both
        directions look alike to it, or else all: twice as many runs with each axis. Not for models that tell left from
        right.
    uncertainty, probabilities : also give the entropy of the class scores, and these themselves; see `Labels`. The
        latter take two bytes per class and voxel.
    region : segment only what lies in this box; elsewhere the result is background. The network also sees
        `REGION_MARGIN` times its coarsest stride around it, and voxel values are normalised over the whole image.

    Raises
    ------
    InvalidInput : a value out of its range; what doesn't fit a model is refused by `Segmenter.segment`.
    """

    tile: tuple[int, ...] | None = None
    overlap: float = 0.25
    blending: Blending = "gaussian"
    slice_axis: str | None = None
    threshold: float = 0.5
    mirror: bool = False
    uncertainty: bool = False
    probabilities: bool = False
    region: Region | None = None

    def __post_init__(self) -> None:
        tile = self.tile
        if tile is not None and (not isinstance(tile, Sequence) or not tile or not all(map(is_count, tile))):
            raise InvalidInput(
                f"tile is {tile!r}; give whole numbers of at least 1, one per axis, such as (96, 96, 96)"
            )
        if tile is not None:
            object.__setattr__(self, "tile", tuple(map(int, tile)))  # equal options are written alike
        if not isinstance(self.overlap, Real) or not 0 <= self.overlap <= 0.9:
            raise InvalidInput(f"overlap is {self.overlap!r}; it must lie between 0 and 0.9")
        if not isinstance(self.threshold, Real) or not 0 < self.threshold < 1:
            raise InvalidInput(f"threshold is {self.threshold!r}; it must lie between 0 and 1")
        if self.region is not None and not isinstance(self.region, Region):
            raise InvalidInput(f"region is {self.region!r}; give a DeepLabSegLib.Region, a box in space")
        for name in ("mirror", "uncertainty", "probabilities"):
            check_choice(name, getattr(self, name), (False, True))
        check_choice("blending", self.blending, ("gaussian", "constant"))
        check_choice("slice_axis", self.slice_axis, (None, *SLICE_AXES))


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` steps of `stage` ("prepare", "segment" or "restore").

    `note` is a sentence for the user about what changed on the way, such as smaller tiles for want of memory.
    """

    stage: str
    done: int
    total: int
    note: str | None = None


OnProgress = Callable[[Progress], bool | None]
"""Called after each step; returning False cancels the run, which then raises `Cancelled`."""


class Report(Protocol):
    """Tells `on_progress` of a step, and raises `Cancelled` where it wants that."""

    def __call__(self, stage: str, done: int, total: int, note: str | None = None) -> None: ...


class Segmenter:
    """A model that is loaded and ready; `segment` may be called any number of times, and by several threads.

    `load_model` makes one. Of a network of one's own, which it puts on the device and in evaluation mode, it takes the
    `Bundle` that tells of it, and how logits become scores; `device`, `precision` and `compiled` are as there, and so
    are the errors over them.
    """

    def __init__(
        self,
        bundle: Bundle,
        network: DeepLabV3Plus,
        device: str = "auto",
        precision: str = "auto",
        compiled: bool = False,
    ) -> None:
        self.bundle = bundle
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.network = network.to(self.device).eval()
        self._compiled = compiled
        self._forms = FastForms(self.network)

    def __repr__(self) -> str:
        return f"<Segmenter: {self.bundle.name}, {self.device}, {self.precision}>"

    def segment(
        self, image: Image, options: SegmentOptions | None = None, on_progress: OnProgress | None = None
    ) -> Labels:
        """Labels of `image` on its own grid.

        Softmax gives a partition `(k, j, i)`; sigmoid with one class a mask `(k, j, i)`; sigmoid with several
        classes a layer per class `(classes, k, j, i)`, where segments may overlap.

        Raises
        ------
        InvalidInput : channels, voxel values or options that don't fit, of which nothing has been computed; less memory
            than the smallest windows need.
        Cancelled : `on_progress` returned False.
        """
        if not isinstance(image, Image):
            raise InvalidInput(
                f"the image is a {kind_of(image)}; read it with read_image, or make an Image of an array and its "
                "Geometry"
            )
        options = options or SegmentOptions()
        if not isinstance(options, SegmentOptions):
            raise InvalidInput(f"options are a {type(options).__name__}; give SegmentOptions(overlap=0.5), for example")
        report = _reporter(on_progress)
        report("prepare", 0, 1)
        self._check(image, options)
        scaling = self.bundle.input.normalization.measure(image.array)
        box = self._box(image.geometry, options)
        seen = image if box is None else crop(image, box)
        grid = self._grid(seen.geometry, options)
        darkest = torch.tensor([[float(channel.min())] for channel in image.array])
        passage = self._passage(seen, grid, scaling, _flat(scaling(darkest)), options)
        report("prepare", 1, 1)
        found = self._run(passage, report)
        if self.bundle.one_piece:
            keep_largest_piece(found.labels, found.doubtful)
        if found.doubtful is not None:
            keep_rim(found.labels, found.doubtful, seen.geometry.spacing)
        for end in self.bundle.ends:
            end_label(found.labels, seen.geometry, end)
        labels = Labels(
            found.labels if self.bundle.overlapping else found.labels[0],
            seen.geometry,
            self.bundle.segments,
            found.uncertainty,
            found.probabilities,
        )
        if box is None or options.region is None:
            return labels
        return _put_back(labels, image.geometry, box, options.region, self.bundle.network.exclusive)

    def check_options(self, options: SegmentOptions) -> None:
        """Raise `InvalidInput` for options that don't fit the model, whatever the image."""
        dims = self.bundle.network.dims
        if options.tile is not None and len(options.tile) != dims:
            raise InvalidInput(f"tile has {len(options.tile)} sizes; this model is {dims}D and needs {dims}")
        if options.slice_axis is not None and (dims == 3 or self.bundle.input.orientation is None):
            why = "is 3D" if dims == 3 else "takes slices as they were acquired"
            raise InvalidInput(
                f"slice_axis is {options.slice_axis!r}, but the model {self.bundle.name} {why}; leave it out"
            )
        if options.mirror and not self._mirror_axes(options):
            raise InvalidInput(
                f"mirror is on, but the model {self.bundle.name} tells the ends of every axis apart; leave it out"
            )
        if options.threshold != SegmentOptions.threshold and self.bundle.network.exclusive:
            raise InvalidInput(
                f"threshold is {options.threshold}, but the model {self.bundle.name} gives each voxel one class, that "
                "of the largest score; leave it out"
            )
        activation = self.bundle.network.classifier_activation
        for name in SCORE_MAPS:
            if getattr(options, name) and activation not in ("softmax", "sigmoid"):
                raise InvalidInput(
                    f"{name}: the scores of {self.bundle.name} are no probabilities, since it ends with {activation}; "
                    "leave it out"
                )

    def describe(self) -> dict[str, str]:
        """What runs where, in words: "device", "precision" and the network's "form" (see `optimize.FastForm.how`)."""
        spec = self.bundle.network
        tile = self.bundle.input.tile or (2 * self.network.stride,) * spec.dims
        shape = (self._at_once(tile), spec.in_channels, *tile)
        titles = {torch.device(device.name): device.title for device in list_devices()}
        title = titles.get(self.device, titles.get(torch.device(self.device.type, 0), ""))
        return {
            "device": f"{self.device} ({title})",
            "precision": self.precision,
            "form": self._forms.of(shape, self.device, self.precision, self._compiled).how,
        }

    def _box(self, geometry: Geometry, options: SegmentOptions) -> tuple[slice, slice, slice] | None:
        """The voxels around the region that the network is to see; None for all."""
        if options.region is None:
            return None
        grid = self._grid(geometry, options)
        # A 2D network sees nothing across its slices.
        reach = np.array([self.bundle.network.dims == 3, 1, 1]) * grid.spacing * self.network.stride * REGION_MARGIN
        along = np.abs(np.array(geometry.direction) @ np.array(grid.direction).T)
        return options.region.box(geometry, along @ reach)

    def _check(self, image: Image, options: SegmentOptions) -> None:
        wanted = self.bundle.input.channels
        if image.channels != len(wanted):
            raise InvalidInput(
                f"the image has {image.channels} channels, and the model {self.bundle.name} takes "
                f"{len(wanted)} ({', '.join(wanted)}); choose another model or image"
            )
        self.check_options(options)
        check_voxels(image)

    def _orientation(self, options: SegmentOptions) -> str | None:
        orientation = self.bundle.input.orientation
        if options.slice_axis is None or orientation is None:
            return orientation
        # The chosen axis comes first, the others keep their order; spacing belongs to the place, not the axis.
        letter = next(c for c in orientation if LETTERS[c][0] == SLICE_AXES[options.slice_axis])
        return letter + orientation.replace(letter, "")

    def _mirror_axes(self, options: SegmentOptions) -> tuple[int, ...]:
        """The axes of the network's grid to average mirror images along."""
        own, orientation = self.bundle.input.mirror_axes, self._orientation(options)
        seen = range(3 - self.bundle.network.dims, 3) if options.mirror else ()  # a 2D network sees nothing along k
        if own is None:
            return tuple(seen)
        if orientation is not None:
            own = tuple(orientation.index(str(self.bundle.input.orientation)[axis]) for axis in own)
        return tuple(axis for axis in seen if axis in own)

    def _grid(self, source: Geometry, options: SegmentOptions) -> Geometry:
        wanted = self.bundle.input
        orientation, spacing = self._orientation(options), wanted.spacing
        stride = self.network.stride if options.tile is None and wanted.tile is None else 1
        across = stride if self.bundle.network.dims == 3 else 1  # a 2D network's slices stand alone
        grid = model_grid(source, orientation, spacing, (across, stride, stride))
        if np.prod(grid.shape, dtype=float) > MAX_GRID_VOXELS:
            raise InvalidInput(
                f"at the model's spacing the image has {' x '.join(map(str, grid.shape))} voxels, more than "
                f"{MAX_GRID_VOXELS}; check the spacing in the header ({source.spacing} mm), or crop the image"
            )
        seen = model_grid(source, orientation, (None, None, None)).shape[-self.bundle.network.dims :]
        if min(seen) < 2:
            remedy = "choose another slice direction"
            if self.bundle.network.dims == 3:
                remedy = "choose a 2D model, or give all slices, of DICOM their folder"
            if self.bundle.network.dims == 2 and orientation is None:
                remedy = "the model takes slices as they are stored, with their plane along the first two axes"
            raise InvalidInput(
                f"the network would see {' x '.join(map(str, seen))} voxels of the scan at once; {remedy}"
            )
        return grid

    def _run(self, passage: Passage, report: Report) -> Found:
        """`streaming.run`, again in less memory as long as there isn't enough, or on the CPU."""
        while True:
            try:
                return run(
                    passage,
                    self._logits_of(passage),
                    lambda done, total: report("segment", done, total),
                    lambda done, total: report("restore", done, total),
                )
            except (RuntimeError, MemoryError) as error:
                found = on_cpu(passage, error, CPU_AT_ONCE[passage.dims])
                if found is None and not out_of_memory(error):
                    raise
                found = found or next_step(passage, self.network.stride)
                if found is None:
                    raise InvalidInput(
                        f"{self.bundle.name} needs more memory than there is, even with windows of "
                        f"{' x '.join(map(str, passage.tile))} voxels; choose a region, or close other programs"
                    ) from None
            release(passage.device)
            passage, note = found
            report("segment", 0, 1, note)

    def _passage(
        self, seen: Image, grid: Geometry, scaling: Scaling, outside: tuple[float, ...], options: SegmentOptions
    ) -> Passage:
        spec = self.bundle.network
        activation = str(spec.classifier_activation)
        flat = spec.dims == 2
        # A network whose maps don't fit into each other a whole number of times sees them slightly out of place.
        whole = [-(-size // self.network.stride) * self.network.stride for size in grid.shape[-spec.dims :]]
        tile = tuple(self.bundle.input.tile or whole)
        if options.tile is not None:  # a window beyond the scan would hold nothing but what lies outside
            tile = tuple(min(asked, max(own)) for asked, *own in zip(options.tile, tile, whole, strict=True))
        window: tuple[int, int, int] = (1, *tile) if flat else tile  # type: ignore[assignment]
        windows = Tiling(grid.shape, window, options.overlap).count
        if windows > MAX_WINDOWS:
            raise InvalidInput(
                f"the scan has {windows} windows of {' x '.join(map(str, tile))} voxels with an overlap of "
                f"{options.overlap:g}, more than {MAX_WINDOWS}; choose a larger tile, less overlap, or a region"
            )
        background = None
        if self.bundle.input.background is not None:
            background = _flat(scaling(torch.full((spec.in_channels, 1), self.bundle.input.background)))
        return Passage(
            source=seen,
            scaling=scaling,
            outside=outside,
            grid=grid,
            tile=window,
            dims=spec.dims,
            overlap=options.overlap,
            blending=options.blending,
            activation=Activation(activation, ACTIVATIONS[activation]),
            decision=Decision(
                classes=spec.num_classes,
                exclusive=spec.exclusive,
                layers=len(self.bundle.labels) if self.bundle.overlapping else 1,
                threshold=options.threshold,
                uncertainty=options.uncertainty,
                probabilities=options.probabilities,
                foreground_first=self.bundle.foreground_first,
            ),
            background=background,
            mirror_axes=self._mirror_axes(options),
            at_once=self._at_once(tile, windows),
            device=self.device,
            keep_on=self.device,
            keep_as=PRECISIONS[self.precision],
        )

    def _at_once(self, tile: Sequence[int], windows: int = max(CPU_AT_ONCE.values())) -> int:
        """How many windows of size `tile`, of so many, go through the network together; a power of two on a GPU."""
        if not is_gpu(self.device):
            batches = -(-windows // CPU_AT_ONCE[len(tile)])
            return -(-windows // batches)  # the last one is as long as the others, or is filled up
        # Of all memory: what is free would be less in the next run, and the network be made ready anew.
        room = memory_of(self.device)
        numbers = NUMBERS_PER_VOXEL * PRECISIONS[self.precision].itemsize
        voxels = GPU_AT_ONCE * 2**20 if room is None else min(GPU_VOXELS, room // numbers)
        most = min(voxels // math.prod(tile), max(GPU_AT_ONCE, windows // 4))
        return 2 ** (max(1, most).bit_length() - 1)

    def _logits_of(self, passage: Passage) -> Callable[[Tensor], Tensor]:
        """From windows `(N, C, *S)` to `(mirrorings, N, classes, *low sizes)`."""
        tile = passage.tile[-passage.dims :]
        # The CPU steps in for a GPU in full precision and without a compiler: either may be slow there, or missing.
        asked = (self.precision, self._compiled) if passage.device == self.device else ("fp32", False)
        shape = (passage.at_once, self.bundle.network.in_channels, *tile)
        turns = mirrorings([axis - 3 for axis in passage.mirror_axes])

        @cache  # asking whether the weights are still the same takes longer than launching a GPU's work
        def form() -> FastForm:
            return self._forms.of(shape, passage.device, *asked)

        def logits_of(x: Tensor) -> Tensor:
            logits = torch.stack([form()(x.flip(turn)).flip(turn) for turn in turns])
            classes = self.bundle.network.num_classes
            if logits.shape[2] != classes:
                raise InvalidInput(
                    f"the network gives {logits.shape[2]} classes, and its bundle tells of {classes}; give the network "
                    "that it tells of"
                )
            size = self.network.output_size(logits.shape[3:], x.shape[2:])
            if size != tile:
                raise InvalidInput(
                    f"the network turns a tile of {tile} into {size}; set head_upsample to None, so that sizes agree"
                )
            return logits

        return logits_of


def load_model(
    name_or_path: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "auto",
    *,
    labels: Sequence[Segment | str] | None = None,
    network: Mapping[str, Any] | None = None,
    model_input: ModelInput | None = None,
    compiled: bool = False,
) -> Segmenter:
    """A `Segmenter` for a model by name (see `list_models`), by the path of its bundle, or from bare weights.

    `device` is "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps"; `precision` is "auto" (bf16 on a
    GPU that has it), "fp32", "bf16" or "fp16". `compiled` has `torch.compile` write the network's kernels, which takes
    up to a minute before the first window. What bare weights can't tell is said by the rest, as to
    `weights.convert`; what is not said is assumed, with a warning. Of a bundle nothing may be said.

    Raises
    ------
    BundleError : no such model, or one that is incomplete, damaged or inconsistent.
    WeightsError : bare weights that can't be read or are of no known network.
    InvalidInput : a device that isn't here or computes nothing, a precision that isn't for it, or something said of a
        bundle.
    """
    choose_precision(precision, choose_device(device))  # before the weights are read
    path = find_model(name_or_path)
    if is_bundle(path):
        if labels or network or model_input:
            raise InvalidInput(
                f"{path} says its labels, network and input itself; leave these out, or convert its weights to another"
            )
        bundle = read_bundle(path)
        return Segmenter(bundle, read_network(path, bundle), device, precision, compiled)
    bundle, model, assumed = convert(path, labels=labels, network=network, model_input=model_input)
    if assumed:
        warnings.warn(f"{path} doesn't tell {'; '.join(assumed)}; `convert` it to say what is right", stacklevel=2)
    bundle = replace(bundle, sha256=digest(model.state_dict()))
    return Segmenter(bundle, model, device, precision, compiled)


def _put_back(
    labels: Labels, whole: Geometry, box: tuple[slice, slice, slice], region: Region, exclusive: bool
) -> Labels:
    """`labels` of the voxels in `box` on the `whole` grid, background outside the region."""

    def put(array: Any) -> Any:
        if array is None:
            return None
        region.clear_outside(array, labels.geometry)
        result = np.zeros((*array.shape[:-3], *whole.shape), array.dtype)
        result[(..., *box)] = array
        return result

    probabilities = put(labels.probabilities)
    if probabilities is not None and exclusive:
        probabilities[0] += probabilities.max(axis=0) == 0  # outside it is certain
    return replace(
        labels,
        array=put(labels.array),
        geometry=whole,
        uncertainty=put(labels.uncertainty),
        probabilities=probabilities,
    )


def _flat(values: Tensor) -> tuple[float, ...]:
    return tuple(values.flatten().tolist())


def _reporter(on_progress: OnProgress | None) -> Report:
    def report(stage: str, done: int, total: int, note: str | None = None) -> None:
        if on_progress is not None and on_progress(Progress(stage, done, total, note)) is False:
            raise Cancelled(f"cancelled during {stage}, after {done} of {total} steps; nothing was changed")

    return report
