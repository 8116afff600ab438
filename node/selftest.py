"""The synthetic head with known lesions through the whole pipeline: does this node still work?

A low Dice here means that something broke (a pack, a library, a device), not that the model is good
or bad on patients: the head is synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dicom.errors import Outcome, StudyError
from pipeline.brain import strip_skull
from pipeline.brain_tools import Extract
from pipeline.flow import Segmenter, analyse
from pipeline.model_pack import ModelPack
from pipeline.phantom import synthetic_head

SEED = 20261
LEAST_DICE = (
    0.3  # the starter pack reaches more (tests/node/test_selftest.py); a broken one does not
)


class SelfTestError(StudyError):
    """The node does not find lesions that are known to be there."""

    reason: ClassVar[str] = "self-test-failed"
    outcome: ClassVar[Outcome] = Outcome.FAILED


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What came out."""

    dice: float
    lesion_count: int
    volume_ml: float
    truth_ml: float


def run_self_test(
    segmenter: Segmenter, pack: ModelPack, extract: Extract = strip_skull
) -> SelfTest:
    """Analyse the synthetic head, with the skull strip of the site.

    Raises:
        SelfTestError: Dice below `LEAST_DICE`, or quality says *fail*.
    """
    phantom = synthetic_head(SEED)
    analysis = analyse(phantom.volume, segmenter, pack.manifest, extract=extract)
    found = analysis.lesions.labels > 0
    truth = phantom.lesions
    dice = 2.0 * np.count_nonzero(found & truth) / max(1, found.sum() + truth.sum())
    if analysis.quality.verdict == "fail" or dice < LEAST_DICE:
        flags = ", ".join(flag.code for flag in analysis.quality.flags) or "none"
        raise SelfTestError(
            f"Dice {dice:.2f} against the known lesions (at least {LEAST_DICE} expected); "
            f"quality {analysis.quality.verdict}, flags: {flags}"
        )
    return SelfTest(
        dice=float(dice),
        lesion_count=analysis.findings.lesion_count,
        volume_ml=analysis.findings.total_volume_ml,
        truth_ml=phantom.lesions_ml,
    )
