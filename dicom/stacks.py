"""One stack of slices, or several that share a series: never a guess, never a mixture.

A volume is made of images that lie evenly along their normal and differ in nothing else. Where a
series holds more than one such stack (echoes, time points, b-values), it is refused with a reason
that names what tells them apart, when one attribute does so cleanly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import atan2, degrees
from typing import Final

import numpy as np
import numpy.typing as npt

from dicom.attributes import number, text
from dicom.errors import (
    DuplicateSliceError,
    GantryTiltError,
    IrregularSpacingError,
    MissingSliceError,
    RepeatedStackError,
    SeriesError,
    SeveralDiffusionWeightingsError,
    SeveralEchoesError,
    SeveralImageTypesError,
    SeveralInversionTimesError,
    SeveralStacksError,
    SeveralTimePointsError,
)
from dicom.frames import Frame

Points = npt.NDArray[np.float64]

FEWEST_SLICES: Final = 3
"""Two slices have one gap, and one gap agrees with itself: a missing slice could not be seen."""
SLICE_GAP_TOLERANCE = (
    0.02  # of the gap; a scanner that rounds positions to 0.1 mm needs 0.011 of 7 mm
)
SMALLEST_GAP_TOLERANCE_MM = 0.01  # positions are decimal strings; scanners round them
TILT_TOLERANCE_DEG = 0.2  # 0.5 mm over a head of 150 mm; rounded cosines give 0.01
ECHO_TOLERANCE_MS = 1.0  # of one stack; scanners write one number for all of its slices

_TOLD_APART_BY: Final[tuple[tuple[str, type[RepeatedStackError]], ...]] = (
    # What was measured comes before when: of echoes that differ in their acquisition number too,
    # a reader wants to know that they are echoes.
    ("EchoTime", SeveralEchoesError),
    ("EchoNumbers", SeveralEchoesError),
    ("InversionTime", SeveralInversionTimesError),
    ("DiffusionBValue", SeveralDiffusionWeightingsError),
    ("ImageType", SeveralImageTypesError),
    ("ComplexImageComponent", SeveralImageTypesError),
    ("StackID", SeveralStacksError),
    ("TemporalPositionIndex", SeveralTimePointsError),
    ("TemporalPositionIdentifier", SeveralTimePointsError),
    ("AcquisitionNumber", SeveralTimePointsError),
    ("AcquisitionTime", SeveralTimePointsError),
)


def refuse_unless_one_stack(frames: Sequence[Frame], positions: Points, normal: Points) -> None:
    """Frames and their positions, in order along the normal, must be equal steps along it.

    Raises:
        DuplicateSliceError, MissingSliceError, IrregularSpacingError, GantryTiltError: The
            positions are not those of one stack.
        RepeatedStackError: They are those of several, told apart by one attribute; or they are one
            stack in space, of images that differ in what was measured.
    """
    stack_ids = len({text(frame.header, "StackID") for frame in frames})
    if stack_ids > 1:
        raise SeveralStacksError(f"StackID has {stack_ids} values in one series")
    try:
        refuse_uneven(positions, normal)
    except (DuplicateSliceError, IrregularSpacingError):
        _refuse_several(frames, positions, normal)
        raise
    _refuse_mixture(frames)


def refuse_uneven(positions: Points, normal: Points) -> None:
    """Positions, in order along the normal, must be equal steps along it."""
    gaps_mm = np.diff(positions @ normal)
    doubled = int(np.count_nonzero(gaps_mm <= SMALLEST_GAP_TOLERANCE_MM))
    if doubled:
        raise DuplicateSliceError(
            f"{doubled} of {len(positions)} slices lie where their neighbour does"
        )
    usual_mm = usual_gap_mm(gaps_mm)
    tolerance_mm = max(SMALLEST_GAP_TOLERANCE_MM, SLICE_GAP_TOLERANCE * usual_mm)
    whole = np.rint(gaps_mm / usual_mm)
    if np.any(np.abs(gaps_mm - whole * usual_mm) > tolerance_mm * np.maximum(whole, 1)):
        raise IrregularSpacingError(
            f"gaps range from {gaps_mm.min():.3f} to {gaps_mm.max():.3f} mm"
            f" over {len(positions)} slices"
        )
    if np.any(whole > 1):
        raise MissingSliceError(
            f"{int(np.sum(whole - 1))} slices missing: gaps up to {gaps_mm.max():.3f} mm"
            f" where {usual_mm:.3f} mm is usual"
        )
    _refuse_tilt(positions, normal)
    steps = np.arange(len(positions)) / (len(positions) - 1)
    straight = positions[0] + steps[:, None] * (positions[-1] - positions[0])
    stray_mm = float(np.linalg.norm(positions - straight, axis=1).max())
    # Gaps may each be within tolerance and still add up.
    if stray_mm > 2 * tolerance_mm:
        raise IrregularSpacingError(f"a slice lies {stray_mm:.3f} mm off an even, straight stack")


def usual_gap_mm(gaps_mm: Points) -> float:
    """The lower median: with an even count the mean of two gaps is the gap of nobody."""
    return float(np.sort(gaps_mm)[(len(gaps_mm) - 1) // 2])


def _refuse_tilt(positions: Points, normal: Points) -> None:
    whole = positions[-1] - positions[0]
    along = float(whole @ normal)
    across = float(np.linalg.norm(whole - along * normal))
    tilt_deg = degrees(atan2(across, along))
    if tilt_deg > TILT_TOLERANCE_DEG and across > SMALLEST_GAP_TOLERANCE_MM:
        raise GantryTiltError(f"positions run {tilt_deg:.2f} degrees off the normal of the slices")


def _refuse_several(frames: Sequence[Frame], positions: Points, normal: Points) -> None:
    """Is there one attribute by whose values these are two or more whole, even stacks?"""
    for keyword, error in _TOLD_APART_BY:
        stacks: defaultdict[str, list[int]] = defaultdict(list)
        for index, frame in enumerate(frames):
            stacks[text(frame.header, keyword)].append(index)
        sizes = {len(members) for members in stacks.values()}
        if len(stacks) < 2 or "" in stacks or len(sizes) != 1 or min(sizes) < FEWEST_SLICES:
            continue
        if all(_is_even(positions[members], normal) for members in stacks.values()):
            raise error(f"{len(stacks)} stacks of {sizes.pop()} slices, told apart by {keyword}")


def _is_even(positions: Points, normal: Points) -> bool:
    try:
        refuse_uneven(positions, normal)
    except SeriesError:
        return False
    return True


def _refuse_mixture(frames: Sequence[Frame]) -> None:
    """One stack in space, but half of it another echo: as good a mixture as a doubled one."""
    echoes = [t for frame in frames if (t := number(frame.header, "EchoTime")) is not None]
    if echoes and max(echoes) - min(echoes) > ECHO_TOLERANCE_MS:
        raise SeveralEchoesError(
            f"EchoTime goes from {min(echoes):.4g} to {max(echoes):.4g} ms within one stack"
        )
    weightings = len({number(frame.header, "DiffusionBValue") for frame in frames})
    if weightings > 1:
        raise SeveralDiffusionWeightingsError(
            f"DiffusionBValue has {weightings} values within one stack"
        )
