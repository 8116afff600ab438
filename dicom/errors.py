"""Why a study, a series or an object could not be used.

Every error answers two questions of the operator: which end does the series come to, and would
sending it again help? Messages hold the values that failed, never a name, an identifier or a date.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Outcome(StrEnum):
    """How a series ends. In the node every acknowledged series reaches exactly one of these."""

    ANALYSED = "analysed"
    """A result was made (`flairnode process`); in the node it goes on to `DELIVERED`."""
    DELIVERED = "delivered"
    """Every destination holds every object of the result, confirmed by query."""
    SKIPPED = "skipped"
    """Not for us: not a FLAIR, or another FLAIR of the study was chosen."""
    NOT_ANALYSED = "not_analysed"
    """A FLAIR that was refused, because of its input or its quality."""
    HELD = "held"
    """Waits for a person or a peer."""
    FAILED = "failed"
    """Our fault."""


class StudyError(Exception):
    """A study cannot be turned into a result. The message names no patient."""

    retry: ClassVar[bool] = False
    """Would the same input succeed later, unchanged?"""
    reason: ClassVar[str] = "unspecified"
    """Stable, kebab-case: dashboards and tests rely on it."""
    outcome: ClassVar[Outcome] = Outcome.NOT_ANALYSED


class UnreadableError(StudyError):
    """No DICOM object could be read at the given place."""

    reason = "unreadable"


class EmptyInputError(UnreadableError):
    """A folder without files."""

    reason = "empty-input"


class NotDicomError(UnreadableError):
    """Files, but none of them DICOM."""

    reason = "not-dicom"


class SeriesError(StudyError):
    """One series is not usable as a volume."""

    reason = "series-unusable"


class TruncatedFileError(SeriesError):
    """A file ends before its data does, or its pixel data does not fill its frames."""

    reason = "truncated-file"


class MissingAttributeError(SeriesError):
    """An attribute that geometry, pixels or identity need is absent or empty."""

    reason = "missing-attribute"


class IncompleteSeriesError(SeriesError):
    """Too few slices, or fewer than the series says it has."""

    reason = "too-few-slices"


class MissingSliceError(SeriesError):
    """One gap is a whole multiple of the others: a slice is missing between two neighbours."""

    reason = "missing-slice"


class IrregularSpacingError(SeriesError):
    """Slice positions are not evenly spaced along the normal."""

    reason = "irregular-spacing"


class DuplicateSliceError(SeriesError):
    """Two images lie at one position, and nothing tells two stacks apart."""

    reason = "duplicate-slice"


class RepeatedStackError(SeriesError):
    """Several stacks of slices in one series, and one attribute tells them apart."""

    reason = "several-stacks"


class SeveralStacksError(RepeatedStackError):
    """Stacks of several orientations, or with names (StackID) of their own."""


class SeveralTimePointsError(RepeatedStackError):
    """The same slices again, at another time."""

    reason = "several-time-points"


class SeveralEchoesError(RepeatedStackError):
    """The same slices at another echo time."""

    reason = "several-echoes"


class SeveralInversionTimesError(RepeatedStackError):
    """The same slices at another inversion time."""

    reason = "several-inversion-times"


class SeveralDiffusionWeightingsError(RepeatedStackError):
    """The same slices at another diffusion weighting."""

    reason = "several-diffusion-weightings"


class SeveralImageTypesError(RepeatedStackError):
    """The same slices as another kind of image: magnitude and phase, or corrected and not."""

    reason = "several-image-types"


class MixedOrientationError(SeriesError):
    """The instances of one series point in different directions (a localizer, for one)."""

    reason = "mixed-orientation"


class InconsistentSeriesError(SeriesError):
    """The instances differ in size, pixel spacing, Frame of Reference or identity."""

    reason = "inconsistent-series"


class GantryTiltError(SeriesError):
    """The positions do not run along the normal of the slices."""

    reason = "gantry-tilt"


class UndecodableError(SeriesError):
    """The pixel data are in a form that no installed decoder reads."""

    reason = "undecodable-pixels"


class DecoderLimitsError(UndecodableError):
    """Decoding would take more memory or time than any real image does, or crashed the decoder."""

    reason = "decoder-limits"


class MultiFrameError(SeriesError):
    """Several frames in an object whose kind does not say where each lies."""

    reason = "unknown-multi-frame"


class PixelsError(SeriesError):
    """The pixels are not an image of a head."""

    reason = "bad-pixels"


class NotFiniteError(PixelsError):
    """NaN or infinity among the voxels."""

    reason = "not-finite"


class BlankImageError(PixelsError):
    """All voxels alike, or nearly."""

    reason = "blank-image"


class ImplausibleGeometryError(SeriesError):
    """Size, spacing or field of view is not that of a head."""

    reason = "implausible-geometry"


class ResultCheckError(StudyError):
    """A result object that we built disagrees with its source or with itself. It is not sent."""

    reason = "result-check-failed"
    outcome = Outcome.FAILED
