"""The head that comes with the extension."""

from pathlib import Path
from typing import Any

import slicer

from DeepLabSegLib.catalog import sample_scan

SAMPLE_NAME = "HeadT1Colin27"


def load_sample() -> Any:
    """The sample's volume node."""
    return slicer.util.loadVolume(str(sample_scan()), {"name": SAMPLE_NAME})


def register_sample() -> None:
    """Put it into the module Sample Data."""
    import SampleData

    path = sample_scan()
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="DeepLabSeg",
        sampleName=SAMPLE_NAME,
        uris=path.resolve().as_uri(),
        fileNames=path.name,
        nodeNames=SAMPLE_NAME,
        thumbnailFileName=str(Path(__file__).parents[1] / "Resources" / "Icons" / "HeadT1Colin27.png"),
    )
