"""From one FLAIR volume to its findings: the whole analysis in one screen.

No step reads settings or holds state: values in, values out. The network is handed in as a
`Segmenter`, so this module runs without torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from dicom.volume import Volume
from pipeline.brain import BrainMask, strip_skull
from pipeline.findings import Findings, measure
from pipeline.lesions import LesionMap, find_lesions
from pipeline.model_pack import Manifest
from pipeline.preprocess import prepare, restore
from pipeline.quality import Flag, Quality, gate, judge, region_flags
from pipeline.regions import Anatomy, NotPlaced, locate_structures, name_regions

OnStage = Callable[[str], None]


class CanvasSegmentation(Protocol):
    """What a network says of a stack of canvas images, each (slices, rows, columns)."""

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """Of a lesion, from the mean of the members' logits."""

    @property
    def disagreement(self) -> npt.NDArray[np.float32]:
        """Standard deviation of the members' probabilities."""


class CanvasSegmenter(Protocol):
    """An ensemble of a canvas pack, loaded and warm (`pipeline.ensemble.Ensemble`)."""

    def segment(self, images: npt.NDArray[np.float32]) -> CanvasSegmentation:
        """Segment (slices, rows, columns) canvas images."""


Timed = Callable[[str], AbstractContextManager[None]]
"""Told the name of a stage, times what is done within (`Stopwatch`)."""


@runtime_checkable
class VolumeSegmenter(Protocol):
    """An ensemble that brings nnU-Net's own preprocessing (`pipeline.nnunet_volume`)."""

    def segment_volume(
        self, volume: Volume, brain: BrainMask, stage: Timed
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Probability and disagreement, as above, on the grid of the volume."""


Segmenter: TypeAlias = CanvasSegmenter | VolumeSegmenter


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """Everything one analysis found out. Nothing of it is a result until quality lets it pass."""

    volume: Volume
    brain: BrainMask
    lesions: LesionMap
    findings: Findings
    quality: Quality
    timing_s: Mapping[str, float]
    anatomy: Anatomy | NotPlaced | None = None
    """What the regions of the lesions were told by; None: there was no lesion."""


class Stopwatch:
    """Seconds per stage, and a word to whoever watches when a stage begins."""

    def __init__(self, on_stage: OnStage | None = None) -> None:
        self.timing_s: dict[str, float] = {}
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time one stage."""
        if self._on_stage is not None:
            self._on_stage(stage)
        start = time.perf_counter()
        yield
        self.timing_s[stage] = round(time.perf_counter() - start, 3)


def analyse(
    volume: Volume,
    segmenter: Segmenter,
    manifest: Manifest,
    *,
    brain: BrainMask | None = None,
    extract: Callable[[Volume], BrainMask] = strip_skull,
    flags: Sequence[Flag] = (),
    stage: Stopwatch | None = None,
) -> Analysis:
    """Find and measure the lesions of one FLAIR volume.

    Args:
        volume: As acquired, with skull; or already stripped, with `brain` given.
        segmenter: The ensemble of the pack.
        manifest: Of the same pack: how images are fed, what counts as a lesion.
        brain: A mask supplied from outside; recorded as such, and *review*. None: extract one.
        extract: The skull strip of the site (`pipeline.brain_tools`).
        flags: What the headers say that a reader of the result should know.
        stage: Where to keep the time of each stage.

    Raises:
        StudyError: The input is refused, with its reason. A volume whose quality is *fail* is not
            an error here: the verdict is in the analysis, and no mask may be made of it.
    """
    stage = stage or Stopwatch()
    with stage("gate"):
        gate(volume)
    with stage("brain"):
        brain = brain or extract(volume)
    said = _segment(volume, brain, segmenter, manifest, stage)
    with stage("lesions"):
        lesions = find_lesions(
            said.probability, said.disagreement, volume, brain, manifest, said.core_median
        )
        findings = measure(lesions)
    anatomy = None
    if findings.lesions:
        with stage("regions"):
            anatomy = locate_structures(volume, brain)
            findings = name_regions(findings, lesions.labels, anatomy)
    with stage("quality"):
        also = (*flags, *region_flags(anatomy))
        quality = judge(volume, brain, lesions, findings, manifest, also)
    return Analysis(volume, brain, lesions, findings, quality, stage.timing_s, anatomy)


@dataclass(frozen=True, slots=True, eq=False)
class _Said:
    """What the ensemble says of every voxel of the source, 0 where it was not asked."""

    probability: npt.NDArray[np.float32]
    disagreement: npt.NDArray[np.float32]
    core_median: float | None
    """The unit of the leak rule, which only canvas packs have."""


def _segment(
    volume: Volume, brain: BrainMask, segmenter: Segmenter, manifest: Manifest, stage: Timed
) -> _Said:
    if isinstance(segmenter, VolumeSegmenter):
        return _Said(*segmenter.segment_volume(volume, brain, stage), core_median=None)
    with stage("preprocess"):
        prepared = prepare(volume, brain, manifest.canvas_spec())
    with stage("segment"):
        segmentation = segmenter.segment(prepared.images)
    with stage("restore"):
        probability, disagreement = restore(
            np.stack([segmentation.probability, segmentation.disagreement]), prepared.placement
        )
    return _Said(probability, disagreement, prepared.core_median)
