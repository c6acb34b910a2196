"""The head that comes with the extension."""

from pathlib import Path
from typing import Any

import slicer

from DeepLabSegLib.catalog import resource

FILE_NAME = "head-t1-colin27.nii.gz"
SAMPLE_NAME = "HeadT1Colin27"


def load_sample() -> Any:
    """The sample's volume node."""
    return slicer.util.loadVolume(str(resource("SampleData") / FILE_NAME), {"name": SAMPLE_NAME})


def register_sample() -> None:
    """Put it into the module Sample Data."""
    import SampleData

    path = resource("SampleData") / FILE_NAME
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="DeepLabSeg",
        sampleName=SAMPLE_NAME,
        uris=path.resolve().as_uri(),
        fileNames=FILE_NAME,
        nodeNames=SAMPLE_NAME,
        thumbnailFileName=str(Path(__file__).parents[1] / "Resources" / "Icons" / "HeadT1Colin27.png"),
    )
