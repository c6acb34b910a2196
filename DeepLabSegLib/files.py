"""Images and label maps on disk. The only module that imports SimpleITK.

SimpleITK counts axes (i, j, k) and places voxels in LPS; here they are turned to (k, j, i) and RAS.
"""

from __future__ import annotations

import locale
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DeepLabSegLib import headers
from DeepLabSegLib.errors import DeepLabSegError, InvalidInput, OutputError
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
    "read_geometry",
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

T = TypeVar("T")

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
SAME_PLACE_MM = 1e-3
ROUNDED_MM = 0.1  # how far rounding may move a DICOM slice aside
MAX_TILT = 0.005  # mm aside per mm along the stack
DESCRIPTION = "0008|103e"  # of a DICOM series
RESCALE = ("0028|1053", "0028|1052")  # slope, intercept
GRID_FRAME_OFFSETS = "3004|000c"


# --- reading ---------------------------------------------------------------------------------------------------------


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a volume or picture: NIfTI, NRRD, MetaImage, PNG, JPEG, or a folder that holds one DICOM series.

    Returns `(C, k, j, i)`; pictures are one slice, colours are channels, and an alpha channel that hides nothing is
    left out. Spacing is in mm, positions in RAS; a JPEG's spacing is 1, since the resolution in it is that of a print.
    Warns of NIfTI whose two transforms, of which Slicer and here the qform is taken, place the voxels differently.

    Raises
    ------
    InvalidInput : a missing or unreadable file, one that is no image, more than three axes, a bad header,
        a folder without exactly one DICOM series, slices or frames that are no even, upright stack.
    """
    return _to_image(_read(path), str(path))


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """The grid of `read_image(path)`; of most formats of volumes the voxels aren't read. Raises as that does."""
    source = Path(path)
    if source.name.lower().endswith(VOLUME_SUFFIXES) and source.is_file():
        _check_name(source)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(source))
        with suppress(RuntimeError), _itk():  # what is wrong is said where all is read
            reader.ReadImageInformation()
            return _geometry(reader)
    return read_image(source).geometry


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
        image = Image(array, _geometry(itk_image))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None
    if itk_image.GetDimension() > 2:  # of a slice ITK takes no height from either
        _warn_of_two_places(image.geometry, name)
    return image


def _warn_of_two_places(geometry: Geometry, name: str) -> None:
    """Warn where ITK takes a NIfTI file's qform, and its sform puts the voxels elsewhere by half of one or more."""
    sform = headers.sform(Path(name))
    if sform is None:
        return
    apart = np.linalg.norm(geometry.corners @ (geometry.affine[:3] - sform[:, [2, 1, 0, 3]]).T, axis=1).max()
    if apart > min(geometry.spacing) / 2:
        warnings.warn(
            f"{name} says by its qform that it lies up to {apart:.1f} mm from where it does by its sform; the qform is "
            "taken, as in Slicer, but FSL and SPM take the sform: copy the right one onto the other, such as with "
            "`fslorient -copysform2qform`",
            stacklevel=4,
        )


def _opaque(array: NDArray) -> bool:
    """Whether the last channel of a picture `(..., C)` is an alpha channel that is full everywhere."""
    return array.shape[-1] == 4 and bool((array[..., -1] == np.iinfo(array.dtype).max).all())


def _geometry(itk_image: sitk.Image | sitk.ImageFileReader) -> Geometry:
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
    _check_name(source)
    if not source.exists():
        raise InvalidInput(f"{source} does not exist; check the path")
    if not os.access(source, os.R_OK):
        raise InvalidInput(f"{source} can't be read without the right to; change its permissions, or copy it")
    try:
        with _itk():
            return _read_dicom(source) if source.is_dir() else _read_file(source)
    except RuntimeError as error:
        raise InvalidInput(
            f"{source} can't be read as an image ({_why_unreadable(error, source)}); "
            f"readable are {', '.join(IMAGE_SUFFIXES)} and folders of one DICOM series"
        ) from None


def _check_name(path: Path, kind: type[DeepLabSegError] = InvalidInput) -> None:
    """Raise `kind` for a name that isn't UTF-8, at which SimpleITK ends the process."""
    if (shown := _printable(str(path))) != str(path):
        raise kind(f"{shown} has letters in its name, or a folder's, that are not in UTF-8; rename it")


def _printable(text: str) -> str:
    """`text`, with a question mark for each byte that is not UTF-8."""
    return text.encode(errors="replace").decode()


def _read_file(source: Path) -> sitk.Image:
    if source.stat().st_size == 0:
        raise InvalidInput(f"{source} is empty (0 bytes); copy or export it again")
    itk_image = sitk.ReadImage(str(source))
    if source.name.lower().endswith(JPEG_SUFFIXES):
        itk_image.SetSpacing([1.0] * itk_image.GetDimension())
    headers.check(source, itk_image.GetSize(), itk_image.GetNumberOfComponentsPerPixel())
    if itk_image.GetDepth() > 1 and sitk.ImageFileReader.GetImageIOFromFileName(str(source)) == "GDCMImageIO":
        _place_frames(itk_image, source)
    return itk_image


def _place_frames(itk_image: sitk.Image, source: Path) -> None:
    """Place the frames of a multi-frame DICOM file, or refuse them.

    ITK stacks them along their normal, whichever way they go, and makes voxels of 1 mm where it finds them uneven.
    """
    if itk_image.HasMetaDataKey(GRID_FRAME_OFFSETS):  # of an RT dose, which ITK places rightly
        return
    header, frames = headers.dicom(source), itk_image.GetDepth()
    positions = headers.decimals(header, headers.FRAME_POSITION, 3)
    pixels = set(headers.decimals(header, headers.PIXEL_SPACING, 2))
    if len(positions) != frames or len(pixels) != 1:
        raise InvalidInput(
            f"{source} has {frames} frames and doesn't say of each where it lies and what size its pixels are, as "
            "enhanced DICOM does, so it is taken for no volume; give the series that it was made of"
        )
    if any(len(set(headers.decimals(header, tag, 1))) > 1 for tag in headers.RESCALE):
        raise InvalidInput(
            f"{source} has frames whose values are scaled differently; convert it with a program that knows of this, "
            "such as dcm2niix"
        )
    direction = np.reshape(itk_image.GetDirection(), (3, 3))
    _check_stack(source, positions, [itk_image.GetDirection()])
    step = (np.array(positions[-1]) - positions[0]) @ direction[:, 2] / (frames - 1)
    rows, columns = pixels.pop()
    itk_image.SetSpacing((columns, rows, abs(step)))
    itk_image.SetDirection((direction * [1, 1, np.sign(step)]).ravel().tolist())


def _read_dicom(folder: Path) -> sitk.Image:
    found = [
        sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    ]
    for name in (name for names in found for name in names):
        _check_name(Path(name))
    if not found:
        nested = ""
        with suppress(OSError):
            nested = ", such as a subfolder of it" if any(path.is_dir() for path in folder.iterdir()) else ""
        raise InvalidInput(f"{folder} holds no DICOM series; give a folder with exactly one{nested}")
    if len(found) > 1:
        titles = ", ".join(sorted(map(_title, found)))
        raise InvalidInput(f"{folder} holds {len(found)} DICOM series ({titles}); give a folder with exactly one")
    (names,) = found
    if len(names) == 1:
        return _read_file(Path(names[0]))
    slices = [_information(name) for name in names]
    normal = np.reshape(slices[0].GetDirection(), (3, 3))[:, 2]
    # GDCM sorts some kinds of slices one way at first and the other way later on.
    slices.sort(key=lambda slice_: float(np.dot(slice_.GetOrigin(), normal)))
    _check_stack(folder, [slice_.GetOrigin() for slice_ in slices], [slice_.GetDirection() for slice_ in slices])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([slice_.GetFileName() for slice_ in slices])
    if len({tuple(_tag(slice_, tag) for tag in RESCALE) for slice_ in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # ITK makes all of the first slice's type, perhaps whole numbers
    return reader.Execute()


def _title(names: Sequence[str]) -> str:
    return f"{_tag(_information(names[0]), DESCRIPTION) or 'no description'}: {len(names)} slices"


def _information(name: str) -> sitk.ImageFileReader:
    """A reader that has read the header of a DICOM file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InvalidInput(f"{name} can't be read as a DICOM slice ({_why_unreadable(error, Path(name))})") from None
    return reader


def _tag(reader: sitk.ImageFileReader, tag: str) -> str:
    return _printable(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""


def _check_stack(source: Path, positions: Sequence[Sequence[float]], directions: Sequence[Sequence[float]]) -> None:
    """Refuse DICOM slices that are no even, upright stack: ITK would put their voxels at wrong places."""
    if np.ptp(directions, axis=0).max() > 1e-3:
        raise InvalidInput(
            f"{source}: the DICOM slices lie in several directions, as those of a localizer or a radial series do; "
            "give a folder with slices of one direction"
        )
    normal = np.reshape(directions[0], (3, 3))[:, 2]
    heights = (np.array(positions) - positions[0]) @ normal
    steps = np.diff(heights)
    if not ((steps > SAME_PLACE_MM).all() or (steps < -SAME_PLACE_MM).all()):
        raise InvalidInput(
            f"{source}: several DICOM slices lie at one place or out of order, as the frames of a cine or the time "
            "points of a scan do; give a folder with one slice for each place"
        )
    aside = np.linalg.norm(np.array(positions) - positions[0] - np.outer(heights, normal), axis=1)
    if (aside > ROUNDED_MM + MAX_TILT * np.abs(heights)).any():
        degrees = np.degrees(np.arctan(aside[-1] / np.abs(heights[-1])))
        how = f"{degrees:.1f} degrees off a right angle, as with a tilted gantry" if degrees > 0.5 else "unevenly"
        raise InvalidInput(
            f"{source}: the DICOM slices are stacked {how}, up to {aside.max():.1f} mm aside; convert the series with "
            "a program that corrects this, such as dcm2niix"
        )
    gaps = np.abs(steps)
    if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise InvalidInput(
            f"{source}: the DICOM slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; a slice is missing or the "
            "spacing varies: complete the series, or resample it to even spacing first"
        )


def _why_unreadable(error: RuntimeError, path: Path) -> str:
    """What ITK says at last, or what it doesn't know of."""
    if path.is_file() and (known := headers.why_unreadable(path)):
        return known
    said = _reason(error, path)
    if path.name.lower().endswith((".mha", ".mhd")) and said.startswith("Reason:"):  # whatever failed last
        return "it is cut short, or the file of its voxels is missing"
    return said


def _reason(error: RuntimeError, path: Path) -> str:
    said = (str(error).strip().splitlines() or ["unknown reason"])[-1].strip()
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
    segments = _segments_from_metadata(itk_image, str(path))
    if not segments:
        found = np.unique(array)
        segments = tuple(Segment(int(v), f"Label {v}", default_color(int(v))) for v in found[found > 0])
    try:
        return Labels(array, image.geometry, segments)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _segments_from_metadata(itk_image: sitk.Image, name: str) -> tuple[Segment, ...]:
    fields = {key: itk_image.GetMetaData(key) for key in itk_image.GetMetaDataKeys()}
    segments: list[Segment] = []
    # Up to Slicer 4.10 each segment has a component of its own, of ones, and says nothing of layers.
    own_layer = "0" if itk_image.GetNumberOfComponentsPerPixel() == 1 else "{}"

    def parsed(key: str, default: str, kind: Callable[[str], T], needed: str) -> T:
        text = fields.get(prefix + key, default)
        try:
            return kind(text)
        except (ValueError, OverflowError):
            raise InvalidInput(f"{name}: {prefix}{key} is {text!r}; it must be {needed}, so correct it") from None

    while (prefix := f"Segment{len(segments)}_") + "ID" in fields:
        value = parsed("LabelValue", "1", int, "a whole number")
        color = parsed("Color", "0.5 0.5 0.5", _color, "three numbers from 0 to 1")
        layer = parsed("Layer", own_layer.format(len(segments)), int, "a whole number")
        tags = dict(tag.split(":", 1) for tag in fields.get(f"{prefix}Tags", "").split("|") if ":" in tag)
        terminology = Terminology.from_entry(tags.get("TerminologyEntry", ""))
        segments.append(Segment(value, fields.get(f"{prefix}Name", f"Label {value}"), color, terminology, layer))
    return tuple(segments)


def _color(text: str) -> tuple[int, int, int]:
    """Three parts from 0 to 1 as such from 0 to 255. Raises `ValueError` or `OverflowError` for what is none."""
    red, green, blue = (round(255 * float(part)) for part in text.split())
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(text)
    return red, green, blue


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
    _check_name(target, OutputError)
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
