"""Images and label maps from disk."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.files import headers, nifti
from DeepLabSegLib.files.dicom import find_series, give_thickness, place_frames, read_series
from DeepLabSegLib.files.formats import IMAGE_SUFFIXES, JPEG_SUFFIXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES
from DeepLabSegLib.files.itk import check_name, geometry_of, printable, quiet, why_unreadable
from DeepLabSegLib.files.segments import segments_of
from DeepLabSegLib.image import Geometry, Image, Labels, Segment, default_color, plain_name, whole_numbers

__all__ = ["read_geometry", "read_image", "read_itk", "read_labels"]


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a volume or picture: NIfTI, NRRD, MetaImage, PNG, JPEG, or a folder that holds one DICOM series.

    Returns `(C, k, j, i)`; pictures are one slice, colours are channels, and an alpha channel that hides nothing is
    left out. Spacing is in mm, positions in RAS; a picture's spacing is 1, since a resolution is that of a print, but
    for the size of pixels in a PNG that ITK wrote. A radiotherapy dose is in its units. Warns of NIfTI whose sform
    places the voxels differently than its qform or pixdim, which is taken as in Slicer, and of a JPEG that EXIF has
    turned where it is shown, and not here.

    Raises
    ------
    InvalidInput : a missing or unreadable file, one that is no image, more than three axes, a bad header,
        a folder without exactly one DICOM series, slices or frames that are no even, upright stack.
    """
    return _to_image(read_itk(path), str(path))


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """The grid of `read_image(path)`; of most formats of volumes the voxels aren't read. Raises as that does."""
    source = Path(path)
    if source.name.lower().endswith(VOLUME_SUFFIXES) and source.is_file():
        check_name(source)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(source))
        with suppress(RuntimeError, OSError, InvalidInput), quiet():  # what is wrong is said where all is read
            _check_readable(source)
            headers.check_before(source)
            reader.ReadImageInformation()
            if reader.GetDimension() <= 3:
                return geometry_of(reader)
    return read_image(source).geometry


def read_labels(path: str | os.PathLike[str]) -> Labels:
    """Read a label map or `.seg.nrrd`; segments of a plain label map are named after their values.

    Of a `.seg.nrrd` names, colours, values and the terminology's category, type and modifier are kept, not the ids;
    of a picture with an alpha channel, whatever that hides, the rest.

    Raises `InvalidInput` where the file can't be read or holds no whole numbers.
    """
    itk_image = read_itk(path)
    image = _to_image(itk_image, str(path))
    picture = str(path).lower().endswith(PICTURE_SUFFIXES)
    layers = image.array[:3] if picture else image.array  # how transparent a pixel is tells no label
    array = whole_numbers(layers if len(layers) > 1 else layers[0], str(path))
    keys = [key for key in itk_image.GetMetaDataKeys() if key == printable(key)]  # SimpleITK takes no others
    fields = {key: printable(itk_image.GetMetaData(key)) for key in keys}
    segments = segments_of(fields, itk_image.GetNumberOfComponentsPerPixel(), str(path))
    if not segments:
        found = np.unique(array)
        segments = tuple(Segment(v, plain_name(v), default_color(v)) for v in found[found > 0].tolist())
    try:
        return Labels(array, image.geometry, segments)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def read_itk(path: str | os.PathLike[str]) -> sitk.Image:
    """What lies at `path`, checked for what ITK passes over. Raises `InvalidInput` as `read_image`."""
    source = Path(path)
    check_name(source)
    if not source.exists():
        raise InvalidInput(f"{source} does not exist; check the path")
    _check_readable(source)
    try:
        with quiet():
            return _read_folder(source) if source.is_dir() else _read_file(source)
    except RuntimeError as error:
        raise InvalidInput(
            f"{source} can't be read as an image ({why_unreadable(error, source)}); "
            f"readable are {', '.join(IMAGE_SUFFIXES)} and folders of one DICOM series"
        ) from None


def _check_readable(source: Path) -> None:
    """Raise `InvalidInput` for a file or folder that is closed to us, or held by another program on Windows."""
    try:
        next(source.iterdir(), None) if source.is_dir() else source.open("rb").close()
    except OSError as error:
        raise InvalidInput(
            f"{source} can't be opened ({error.strerror}); change its permissions, or close it in other programs"
        ) from None


def _read_folder(folder: Path) -> sitk.Image:
    names = find_series(folder)
    return _read_file(Path(names[0])) if len(names) == 1 else read_series(folder, names)


def _read_file(source: Path) -> sitk.Image:
    if source.stat().st_size == 0:
        raise InvalidInput(f"{source} is empty (0 bytes); copy or export it again")
    headers.check_before(source)
    with nifti.alone(source) as file:
        itk_image = sitk.ReadImage(str(file))
    if source.name.lower().endswith(JPEG_SUFFIXES):
        itk_image.SetSpacing([1.0] * itk_image.GetDimension())
    kind = sitk.ImageFileReader.GetImageIOFromFileName(str(source))
    numbers = itk_image.GetNumberOfComponentsPerPixel(), itk_image.GetSizeOfPixelComponent()
    headers.check(source, kind, itk_image.GetSize(), numbers)
    if kind == "GDCMImageIO":
        if itk_image.GetDepth() > 1:
            return place_frames(itk_image, source)
        give_thickness(itk_image)
    return itk_image


def _to_image(itk_image: sitk.Image, name: str) -> Image:
    if itk_image.GetDimension() == 4 and itk_image.GetSize()[3] == 1:  # a series of one time point
        itk_image = itk_image[:, :, :, 0]
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
        image = Image(array, geometry_of(itk_image))
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None
    if itk_image.GetDimension() > 2:  # of a slice ITK takes no height from either
        _warn_of_two_places(image.geometry, name)
    return image


def _warn_of_two_places(geometry: Geometry, name: str) -> None:
    """Warn where ITK takes a NIfTI file's qform or pixdim, and its sform puts voxels elsewhere by half of one or more.

    Of a file with a sform alone ITK takes the directions and the place from it, and the voxels' size from pixdim.
    """
    sform = nifti.sform(Path(name))
    if sform is None:
        return
    apart = np.linalg.norm(geometry.corners @ (geometry.affine[:3] - sform[:, [2, 1, 0, 3]]).T, axis=1).max()
    if not apart > min(geometry.spacing) / 2:  # it may be no number
        return
    pixdim, sizes = geometry.spacing[::-1], np.linalg.norm(sform[:, :3], axis=0)
    taken, remedy = "qform", "copy the right one onto the other, such as with `fslorient -copysform2qform`"
    if not np.allclose(pixdim, sizes, rtol=1e-3):
        shown = [" x ".join(f"{mm:.4g}" for mm in each) for each in (pixdim, sizes)]
        taken, remedy = "pixdim", f"correct the wrong one, which has voxels of {shown[0]} mm or of {shown[1]}"
    warnings.warn(
        f"{name} says by its {taken} that it lies up to {apart:.1f} mm from where it does by its sform; the {taken} is "
        f"taken, as in Slicer, but FSL and SPM take the sform: {remedy}",
        stacklevel=4,
    )


def _opaque(array: NDArray) -> bool:
    """Whether the last channel of a picture `(..., C)` is an alpha channel that is full everywhere."""
    return array.shape[-1] == 4 and bool((array[..., -1] == np.iinfo(array.dtype).max).all())
