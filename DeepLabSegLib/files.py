"""Images and label maps on disk. The only module that imports SimpleITK.

SimpleITK counts axes (i, j, k) and places voxels in LPS; here they are turned to (k, j, i) and RAS.
"""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DeepLabSegLib import headers
from DeepLabSegLib.errors import InvalidInput, OutputError
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, Terminology, default_color, whole_numbers
from DeepLabSegLib.outputs import check_output, replacing

__all__ = [
    "IMAGE_SUFFIXES",
    "JPEG_SUFFIXES",
    "LABEL_SUFFIXES",
    "ONE_FILE_SUFFIXES",
    "PICTURE_SUFFIXES",
    "VOLUME_SUFFIXES",
    "check_slices",
    "read_image",
    "read_labels",
    "write_image",
    "write_labels",
]

ONE_FILE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
VOLUME_SUFFIXES = (*ONE_FILE_SUFFIXES, ".nhdr", ".mhd")  # the last two have their voxels in a file beside them
JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (".png", *JPEG_SUFFIXES)
IMAGE_SUFFIXES = (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)
LABEL_SUFFIXES = (".seg.nrrd", *ONE_FILE_SUFFIXES, ".png")

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
SAME_PLACE_MM = 1e-3
ROUNDED_MM = 0.1  # how far rounding may move a DICOM slice aside
MAX_TILT = 0.005  # mm aside per mm along the stack


# --- reading ---------------------------------------------------------------------------------------------------------


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a volume or picture: NIfTI, NRRD, MetaImage, PNG, JPEG, or a folder that holds one DICOM series.

    Returns `(C, k, j, i)`; pictures are one slice, colours are channels, and an alpha channel that hides nothing is
    left out. Spacing is in mm, positions in RAS; a JPEG's spacing is 1, since the resolution in it is that of a print.

    Raises
    ------
    InvalidInput : a missing or unreadable file, one that is no image, more than three axes, a bad header,
        a folder without exactly one DICOM series, a series that is no even, upright stack of slices.
    """
    return _to_image(_read(path), str(path))


def _to_image(itk_image: sitk.Image, name: str) -> Image:
    if itk_image.GetDimension() > 3:
        raise InvalidInput(
            f"{name} has {itk_image.GetDimension()} axes ({' x '.join(map(str, itk_image.GetSize()))}); "
            "save one time point or channel as a 3D image"
        )
    if "complex" in itk_image.GetPixelIDTypeAsString():
        raise InvalidInput(f"{name} has complex voxels; save its magnitude as a real image")
    array = sitk.GetArrayFromImage(itk_image)
    # A vector image's channels come last; a picture has no k axis.
    channels_last = array if itk_image.GetNumberOfComponentsPerPixel() > 1 else array[..., None]
    if itk_image.GetDimension() == 2:
        channels_last = channels_last[None]
    if name.lower().endswith(PICTURE_SUFFIXES) and _opaque(channels_last):
        channels_last = channels_last[..., :-1]
    array = np.ascontiguousarray(np.moveaxis(channels_last, -1, 0))
    try:
        return Image(array, _geometry(itk_image))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None


def _opaque(array: NDArray) -> bool:
    """Whether the last channel of a picture `(..., C)` is an alpha channel that is full everywhere."""
    return array.shape[-1] == 4 and bool((array[..., -1] == np.iinfo(array.dtype).max).all())


def _geometry(itk_image: sitk.Image) -> Geometry:
    dims = itk_image.GetDimension()
    spacing, origin, direction = np.ones(3), np.zeros(3), np.eye(3)
    spacing[:dims] = itk_image.GetSpacing()
    origin[:dims] = itk_image.GetOrigin()
    direction[:dims, :dims] = np.reshape(itk_image.GetDirection(), (dims, dims))
    shape = (*itk_image.GetSize(), 1)[:3]
    # Rows of the result are the axes k, j, i, so the columns i, j, k are transposed and turned round.
    return Geometry(
        shape[::-1],
        tuple(spacing[::-1]),
        tuple(origin * LPS_TO_RAS),
        tuple(map(tuple, (direction * LPS_TO_RAS[:, None]).T[::-1])),
    )


def _read(path: str | os.PathLike[str]) -> sitk.Image:
    source = Path(path)
    if not source.exists():
        raise InvalidInput(f"{source} does not exist; check the path")
    try:
        if source.is_dir():
            return _read_dicom(source)
        if source.stat().st_size == 0:
            raise InvalidInput(f"{source} is empty (0 bytes); copy or export it again")
        with _itk():
            itk_image = sitk.ReadImage(str(source))
        if source.name.lower().endswith(JPEG_SUFFIXES):
            itk_image.SetSpacing([1.0] * itk_image.GetDimension())
        headers.check(source, itk_image.GetSize(), itk_image.GetNumberOfComponentsPerPixel())
        return itk_image
    except RuntimeError as error:
        raise InvalidInput(
            f"{source} can't be read as an image ({_reason(error, source)}); "
            f"readable are {', '.join(IMAGE_SUFFIXES)} and folders of one DICOM series"
        ) from None


def _read_dicom(folder: Path) -> sitk.Image:
    with _itk():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if len(series) != 1:
            found = f"{len(series)} DICOM series" if series else "no DICOM series"
            raise InvalidInput(f"{folder} holds {found}; give a folder with exactly one")
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
        _check_slices(names)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        return reader.Execute()


def _check_slices(names: tuple[str, ...]) -> None:
    """Refuse a series whose slices are no even, upright stack: ITK would put its voxels at wrong places."""
    positions, directions = [], []
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.ReadImageInformation()
        positions.append(reader.GetOrigin())
        directions.append(reader.GetDirection())
    if len(names) < 2:
        return
    if np.ptp(directions, axis=0).max() > 1e-3:
        raise InvalidInput(
            "the DICOM slices lie in several directions, as those of a localizer or a radial series do; "
            "give a folder with slices of one direction"
        )
    normal = np.reshape(directions[0], (3, 3))[:, 2]
    heights = (np.array(positions) - positions[0]) @ normal
    steps = np.diff(heights)
    if not ((steps > SAME_PLACE_MM).all() or (steps < -SAME_PLACE_MM).all()):
        raise InvalidInput(
            "several DICOM slices lie at one place, as the frames of a cine or the time points of a scan do; "
            "give a folder with one slice for each place"
        )
    aside = np.linalg.norm(np.array(positions) - positions[0] - np.outer(heights, normal), axis=1)
    if (aside > ROUNDED_MM + MAX_TILT * np.abs(heights)).any():
        degrees = np.degrees(np.arctan(aside[-1] / np.abs(heights[-1])))
        how = f"{degrees:.1f} degrees off a right angle, as with a tilted gantry" if degrees > 0.5 else "unevenly"
        raise InvalidInput(
            f"the DICOM slices are stacked {how}, up to {aside.max():.1f} mm aside; convert the series with a program "
            "that corrects this, such as dcm2niix"
        )
    gaps = np.abs(steps)
    if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise InvalidInput(
            f"the DICOM slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; a slice is missing or the spacing "
            "varies: complete the series, or resample it to even spacing first"
        )


def _reason(error: RuntimeError, path: Path) -> str:
    """What ITK says at last, and what it doesn't know of."""
    said = (str(error).strip().splitlines() or ["unknown reason"])[-1].strip()
    if path.name.lower().endswith(".nii") and path.is_file() and headers.is_gzipped(path):
        return f"{said}; it is gzipped, so call it {path.name}.gz"
    if sys.platform == "win32" and not str(path).isascii():
        return f"{said}; perhaps for letters beyond ASCII: try a name and folder without them"
    return said


@contextmanager
def _itk() -> Iterator[None]:
    """ITK prints its warnings to the terminal; what matters is raised here as an error."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        with _names_in_utf8():
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@contextmanager
def _names_in_utf8() -> Iterator[None]:
    """ITK hands a file's name to the C library in UTF-8; Windows' takes it for its code page unless told otherwise."""
    if sys.platform != "win32":
        yield
        return
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, ".UTF8")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a label map or `.seg.nrrd`; segments of a plain label map are named after their values.

    Of a `.seg.nrrd` names, colours, values and the terminology's category, type and modifier are kept, not the ids.

    Raises `InvalidInput` where the file can't be read or holds no whole numbers.
    """
    itk_image = _read(path)
    image = _to_image(itk_image, str(path))
    array = image.array if image.channels > 1 else image.array[0]
    array = whole_numbers(array, str(path))
    segments = _segments_from_metadata(itk_image)
    if not segments:
        found = np.unique(array)
        segments = tuple(Segment(int(v), f"Label {v}", default_color(int(v))) for v in found[found > 0])
    return Labels(array, image.geometry, segments)


def _segments_from_metadata(itk_image: sitk.Image) -> tuple[Segment, ...]:
    keys = set(itk_image.GetMetaDataKeys())
    segments: list[Segment] = []
    while f"Segment{len(segments)}_ID" in keys:
        prefix = f"Segment{len(segments)}_"
        values = {key: itk_image.GetMetaData(prefix + key) for key in ("Name", "Color", "LabelValue", "Layer", "Tags")
                  if prefix + key in keys}  # fmt: skip
        color = tuple(round(255 * float(part)) for part in values.get("Color", "0.5 0.5 0.5").split())
        value, layer = int(values.get("LabelValue", 1)), int(values.get("Layer", 0))
        tags = dict(tag.split(":", 1) for tag in values.get("Tags", "").split("|") if ":" in tag)
        terminology = Terminology.from_entry(tags.get("TerminologyEntry", ""))
        segments.append(Segment(value, values.get("Name", f"Label {value}"), color, terminology, layer))  # type: ignore[arg-type]
    return tuple(segments)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_labels(labels: Labels, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write labels; the ending says how.

    `.seg.nrrd` keeps names, colours, ids, terminology and overlapping segments, and opens in Slicer as a
    segmentation; `.nii`, `.nii.gz`, `.nrrd` and `.mha` are plain label maps; `.png` takes a single slice.

    Raises
    ------
    OutputError : an unknown ending, a folder that is missing or can't be written, an existing file without
        `overwrite`, labels that the format can't hold, a disk without room; what was there is kept.
    """
    target = check_output(path, LABEL_SUFFIXES, overwrite)
    segmentation = target.name.lower().endswith(".seg.nrrd")
    if labels.array.ndim == 4 and not segmentation:
        raise OutputError(f"{target} is a plain label map and can't hold segments that overlap; write a .seg.nrrd")
    check_slices(target, labels.geometry)
    if target.suffix.lower() == ".png":
        itk_image = sitk.GetImageFromArray(labels.array[0])
        itk_image.SetSpacing(labels.geometry.spacing[:0:-1])
    else:
        itk_image = _from_array(labels.array, labels.geometry)
    if segmentation:
        for key, value in _segmentation_metadata(labels).items():
            itk_image.SetMetaData(key, value)
    _write(itk_image, target)


def check_slices(target: Path, geometry: Geometry) -> None:
    """Raise `OutputError` where `target` is a picture, which can't take labels of several slices."""
    if target.suffix.lower() == ".png" and geometry.shape[0] > 1:
        raise OutputError(f"{target} is a picture, and the labels have {geometry.shape[0]} slices; write a .nrrd")


def write_image(image: Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an image as `.nii.gz`, `.nii`, `.nrrd` or `.mha`. Raises `OutputError` as `write_labels`."""
    target = check_output(path, ONE_FILE_SUFFIXES, overwrite)
    _write(_from_array(image.array if image.channels > 1 else image.array[0], image.geometry), target)


def _write(itk_image: sitk.Image, target: Path) -> None:
    with replacing(target) as temporary:
        try:
            with _itk():
                sitk.WriteImage(itk_image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise OutputError(f"{target} can't be written ({_reason(error, target)})") from None
        if not _holds(temporary, itk_image):
            raise OutputError(
                f"{target} can't be written whole; make room on its disk, or choose a folder on another one"
            )


def _holds(path: Path, written: sitk.Image) -> bool:
    """Whether the file at `path` has the voxels of `written`; of most that fails in writing, ITK says nothing."""
    try:
        read = _read(path)
    except InvalidInput:
        return False
    found, voxels = (sitk.GetArrayViewFromImage(image).ravel() for image in (read, written))
    # ITK reads 0 from NIfTI for what is not finite.
    return found.size == voxels.size and bool(((found == voxels) | ~np.isfinite(voxels)).all())


def _from_array(array: NDArray, geometry: Geometry) -> sitk.Image:
    """`(k, j, i)` or `(n, k, j, i)` to an image of SimpleITK, layers or channels as components."""
    layered = array.ndim == 4
    itk_image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if layered else array, isVector=layered)
    itk_image.SetSpacing(geometry.spacing[::-1])
    itk_image.SetOrigin((np.array(geometry.origin) * LPS_TO_RAS).tolist())
    itk_image.SetDirection((np.array(geometry.direction)[::-1] * LPS_TO_RAS).T.ravel().tolist())
    return itk_image


def _segmentation_metadata(labels: Labels) -> dict[str, str]:
    """The header fields by which Slicer reads a `.seg.nrrd` (vtkMRMLSegmentationStorageNode)."""
    metadata = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    k, j, i = labels.geometry.shape
    ids = [segment.id for segment in labels.segments]
    for n, segment in enumerate(labels.segments):
        fields = {
            # A value may come again in another layer; what Slicer has overlaps so.
            "ID": segment.id if ids.count(segment.id) == 1 else f"{segment.id}_{segment.layer}",
            "Name": segment.name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part / 255:.6f}" for part in segment.color),
            "ColorAutoGenerated": "0",
            "LabelValue": str(segment.value),
            "Layer": str(segment.layer),
            "Extent": f"0 {i - 1} 0 {j - 1} 0 {k - 1}",
            "Tags": f"TerminologyEntry:{segment.terminology.entry}|" if segment.terminology else "",
        }
        metadata |= {f"Segment{n}_{key}": value for key, value in fields.items()}
    return metadata
