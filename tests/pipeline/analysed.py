"""An analysis with lesions put where a test wants them; no network, but real types throughout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from dicom.series import Series
from dicom.volume import Volume, read_volume
from pipeline.brain import BrainMask
from pipeline.findings import measure
from pipeline.flow import Analysis
from pipeline.lesions import LesionMap
from pipeline.model_pack import ModelPack
from pipeline.quality import Flag, Quality
from pipeline.regions import Anatomy, NotPlaced, name_regions
from pipeline.registration import Placement
from tests.pipeline.tiny_pack import manifest

SETTINGS: dict[str, JsonValue] = {"mirroring_axes": [1], "precision": "float32"}
REVIEW = Quality((Flag("brain-cut-off", "The brain is cut off at the last slice.", "review"),))

Labels = npt.NDArray[np.int32]


def three_lesions(shape: tuple[int, int, int] = (10, 48, 36)) -> Labels:
    """210 voxels on slices 2 to 4, 19 on 6 and 7 that touch at a corner, one on slice 8."""
    labels = np.zeros(shape, np.int32)
    labels[2:5, 10:20, 8:15] = 1
    labels[6, 30:33, 20:26] = 2
    labels[7, 33, 26] = 2
    labels[8, 5, 6] = 3
    return labels


def no_lesions(shape: tuple[int, int, int] = (10, 48, 36)) -> Labels:
    return np.zeros(shape, np.int32)


def pack(status: str = "research", **changes: object) -> ModelPack:
    return ModelPack(manifest(status=status, **changes), Path("/no/such/pack"), "5a" * 32)


def anatomy_of_three(volume: Volume) -> Anatomy:
    """Drawn by hand so that `three_lesions` are periventricular, juxtacortical, infratentorial."""
    ventricles, cortex, below = (np.zeros(volume.grid.shape, bool) for _ in range(3))
    ventricles[2, 10:20, 15:18] = True
    cortex[6, 33:36, 18:28] = True
    below[8:] = True
    return Anatomy(
        lateral_ventricles=ventricles,
        cortex=cortex,
        infratentorial=below,
        grid=volume.grid,
        placement=Placement(np.eye(4), 0.96),
        own_ventricles=True,
    )


def analysis_of(
    volume: Volume,
    labels: Labels,
    quality: Quality = REVIEW,
    anatomy: Anatomy | NotPlaced | None = None,
) -> Analysis:
    """Probability .75 in every lesion and a little more in its first voxels."""
    probability = np.where(labels > 0, 0.75, 0.1).astype(np.float32)
    probability[labels == 1] += np.float32(0.125)
    lesions = LesionMap(
        probability=probability,
        disagreement=probability * np.float32(0.1),
        labels=labels,
        grid=volume.grid,
        dropped_small=2,
        dropped_leaks=0,
    )
    brain = BrainMask(
        np.ones(volume.grid.shape, bool), volume.grid, "surface-refine", "1", {"opening_mm": 3.0}
    )
    findings = name_regions(measure(lesions), labels, anatomy)
    return Analysis(volume, brain, lesions, findings, quality, {}, anatomy)


def analysed(series: Series, labels: Labels, quality: Quality = REVIEW) -> Analysis:
    return analysis_of(read_volume(series), labels, quality)
