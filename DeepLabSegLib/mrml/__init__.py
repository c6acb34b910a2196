"""Slicer's nodes: a volume node in, a segmentation node out. The only folder that imports slicer.

It needs a scene and the MRML classes, no window and no application: it runs in Slicer and on `slicer-core` alike.
"""

from DeepLabSegLib.mrml.nodes import segmented_volume
from DeepLabSegLib.mrml.reading import read_volumes, volume_voxels
from DeepLabSegLib.mrml.regions import fit_region, read_region
from DeepLabSegLib.mrml.segmenting import segment_volumes
from DeepLabSegLib.mrml.state import has_other_layers, segmentation_digest, segmentation_state, volume_state
from DeepLabSegLib.mrml.writing import check_output_node, write_map, write_result, write_segmentation

__all__ = [
    "check_output_node",
    "fit_region",
    "has_other_layers",
    "read_region",
    "read_volumes",
    "segment_volumes",
    "segmentation_digest",
    "segmentation_state",
    "segmented_volume",
    "volume_state",
    "volume_voxels",
    "write_map",
    "write_result",
    "write_segmentation",
]
