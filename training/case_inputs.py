"""What a case is read from: a folder of NIfTI files, or a line of a site's cohort.

Both give the same: an image as the node would read it, and masks on its grid. A DICOM series comes
through the gates of the node: its study is read and its FLAIR selected as `flairnode process` does
it, so a series that the node would refuse is a row with the node's reason, not a figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import JsonValue

from config.selection import SelectionSettings, rules_in_force
from dicom.attributes import text
from dicom.errors import Outcome, StudyError, UnreadableError
from dicom.series import Series, Study, read_study
from dicom.volume import Grid, Volume, read_nifti, read_volume
from pipeline.acquisition import describe_acquisition
from pipeline.brain import BrainMask, supplied_mask
from pipeline.quality import Flag, header_flags
from pipeline.selection import choose
from training.cohort import CohortCase
from training.masks import (
    EmptyMaskError,
    MaskRules,
    MissingMaskError,
    SeveralMasksError,
    read_mask_for,
    refuse_mirrored,
    refuse_unlikely,
)
from training.metrics import read_mask, refuse_other_grid
from training.prepare import MissingImageError, NameAsPseudonymError, SeveralImagesError
from training.voxel_metrics import Mask

REFERENCE, PREDICTION, FLAIR, BRAIN, SECOND = (
    f"{name}.nii.gz" for name in ("reference", "prediction", "flair", "brain", "second")
)
"""Of a case's folder; and what a row calls its inputs, whatever form they came in."""
NIFTI_ENDINGS = (".nii", ".nii.gz")
Digests = dict[str, str | None]


class MissingFileError(UnreadableError):
    """A case lacks a file that the run needs."""

    reason = "missing-file"


class NotSelectedError(StudyError):
    """The node would analyse no series of this study; the reason is the node's."""

    def __init__(self, reason: str, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.code = reason
        self.end = outcome


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """The FLAIR of a case."""

    volume: Volume
    brain: BrainMask | None = None
    """Supplied, where the image came stripped."""
    flags: tuple[Flag, ...] = ()
    """What the headers say that a reader of the result should know."""
    acquisition: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """What readers drew."""

    reference: Mask
    second: Mask | None
    grid: Grid


class Files(Protocol):
    """The files of one case."""

    needs_image: ClassVar[bool]
    """Masks are brought to the grid of the image, so there are none without it."""

    @property
    def has_image(self) -> bool:
        """Is there anything to draw pictures of?"""

    @property
    def read_as(self) -> JsonValue:
        """The rules they are read by; null where there are none."""

    def digests(self, *, segmented: bool) -> Digests:
        """SHA-256 of what the measures rest on; `segmented`: no prediction is read."""

    def image(self) -> Image:
        """The FLAIR."""

    def masks(self, image: Image | None) -> Masks:
        """Reference and second reader; on the grid of the image, where it was read."""

    def prediction(self, grid: Grid) -> Mask:
        """A mask that was made before."""


@dataclass(frozen=True, slots=True)
class NiftiFiles:
    """Masks and image as NIfTI, on one grid."""

    needs_image: ClassVar[bool] = False
    name: str
    """Of the case: a missing file is told by it."""
    folder: Path
    names: Mapping[str, str] = field(default_factory=dict)
    """How a file is called where it is not called by its own name."""

    def _path(self, name: str) -> Path:
        return self.folder / self.names.get(name, name)

    @property
    def has_image(self) -> bool:
        """Is there anything to draw pictures of?"""
        return self._path(FLAIR).is_file()

    @property
    def read_as(self) -> JsonValue:
        """No rules: what does not fit as it is, is refused."""
        return None

    def digests(self, *, segmented: bool) -> Digests:
        """Of each file; null: not there."""
        names = [REFERENCE, *([] if segmented else [PREDICTION]), FLAIR, BRAIN, SECOND]
        return {name: file_digest(self._path(name)) for name in names}

    def image(self) -> Image:
        """The FLAIR, and the brain where it came stripped.

        Raises:
            MissingFileError: No image.
        """
        volume = read_nifti(self._there(FLAIR))
        brain = self._path(BRAIN)
        return Image(
            volume,
            supplied_mask(read_nifti(brain), volume.grid) if brain.is_file() else None,
            acquisition=describe_acquisition(volume.grid, None),
        )

    def masks(self, image: Image | None) -> Masks:
        """Reference and second reader.

        Raises:
            MissingFileError: No reference.
            GridMismatchError: They or the image do not lie on one grid.
        """
        reference, grid = read_mask(self._there(REFERENCE))
        if image is not None:
            refuse_other_grid(grid, image.volume.grid)
        second = None
        if self._path(SECOND).is_file():
            second, other = read_mask(self._path(SECOND))
            refuse_other_grid(grid, other)
        return Masks(reference, second, grid)

    def prediction(self, grid: Grid) -> Mask:
        """A mask that was made before.

        Raises:
            MissingFileError: There is none.
            GridMismatchError: It lies elsewhere.
        """
        mask, other = read_mask(self._there(PREDICTION))
        refuse_other_grid(grid, other)
        return mask

    def _there(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise MissingFileError(f"{self.name} has no {path.name}")
        return path


@dataclass(frozen=True, slots=True)
class CohortRules:
    """How the images and masks of a cohort are read."""

    selection: SelectionSettings = field(default_factory=SelectionSettings)
    masks: MaskRules = field(default_factory=MaskRules)
    empty_is_negative: bool = False
    """An empty mask means no lesion, also where the cohort does not say lesion_free."""


@dataclass(frozen=True, slots=True)
class CohortFiles:
    """A line of a cohort: DICOM or NIfTI image; NIfTI, Segmentation or pictures as masks."""

    needs_image: ClassVar[bool] = True
    case: CohortCase
    rules: CohortRules

    @property
    def has_image(self) -> bool:
        """Without one there are no masks either."""
        return True

    @property
    def read_as(self) -> JsonValue:
        """Rules of the selection and of the masks."""
        return {
            "selection_rules": rules_in_force(self.rules.selection).digest,
            "minimum_slices": self.rules.selection.minimum_slices,
            "slice_order": self._mask_rules.slice_order,
            "labels": self._mask_rules.labels.value,
            "empty_is_negative": self.rules.empty_is_negative,
            "lesion_free": self.case.lesion_free,
            "mask_checked": self.case.mask_checked,
        }

    def digests(self, *, segmented: bool) -> Digests:  # there is no other way
        """Of the files or folders of image and masks."""
        return {
            name: input_digest(paths)
            for name, paths in (
                (REFERENCE, self.case.masks),
                (FLAIR, self.case.images),
                (SECOND, self.case.second_masks),
            )
        }

    def image(self) -> Image:
        """The FLAIR that the node would analyse.

        Raises:
            StudyError: There is none, or the node would refuse it.
        """
        path = _the_only_image(self.case.images)
        if path.is_file() and path.name.lower().endswith(NIFTI_ENDINGS):
            volume = read_nifti(path)
            return Image(volume, acquisition=describe_acquisition(volume.grid, None))
        series = select_as_the_node_does(read_study(path), self.rules.selection)
        name = text(series.header, "PatientName")
        if "^" in name and self.case.patient.casefold() in name.casefold().split("^"):
            raise NameAsPseudonymError("the pseudonym is a part of PatientName in the image")
        volume = read_volume(series)
        return Image(
            volume,
            flags=header_flags(series),
            acquisition=describe_acquisition(volume.grid, series),
        )

    def masks(self, image: Image | None) -> Masks:
        """The masks, brought to the grid of the image as `train prepare` does it.

        Raises:
            StudyError: A mask is not there, or does not fit.
        """
        if image is None:
            raise MissingImageError("the masks of a cohort are read for an image")
        first = self._mask(self.case.masks, image.volume)
        second = None
        if self.case.second_masks:
            second = self._mask(self.case.second_masks, image.volume)
        if not (first.any() or self.case.lesion_free or self.rules.empty_is_negative):
            raise EmptyMaskError(
                "no voxel is marked: say that the patient is free of lesions, if somebody looked"
            )
        return Masks(first, second, image.volume.grid)

    def prediction(self, grid: Grid) -> Mask:
        """None: a cohort holds no predictions.

        Raises:
            MissingFileError: Always.
        """
        raise MissingFileError("a cohort holds no predictions: its images are segmented")

    @property
    def _mask_rules(self) -> MaskRules:
        return MaskRules(
            self.case.slice_order or self.rules.masks.slice_order, self.rules.masks.labels
        )

    def _mask(self, paths: Sequence[Path], image: Volume) -> Mask:
        if not paths:
            raise MissingMaskError("the case has no mask")
        if len(paths) > 1:
            raise SeveralMasksError(
                f"{len(paths)} masks for one image, and nothing says which to use"
            )
        mask = read_mask_for(image, paths[0], self._mask_rules).mask
        refuse_unlikely(mask, image)
        if not self.case.mask_checked:
            refuse_mirrored(mask, image)
        return mask


def select_as_the_node_does(study: Study, settings: SelectionSettings) -> Series:
    """The series of a study that the node would analyse.

    Raises:
        NotSelectedError: None; with the reason of the series that comes nearest to one.
    """
    selection = choose(study, settings)
    if selection.selected is not None:
        return next(s for s in study.series if s.series_instance_uid == selection.selected)
    refused = [one for one in selection.decisions if one.outcome is Outcome.NOT_ANALYSED]
    if not refused and len(selection.decisions) != 1:
        raise NotSelectedError(
            "no-flair",
            Outcome.SKIPPED,
            f"none of the {len(study.series)} series is a FLAIR of the head",
        )
    best = max(refused or selection.decisions, key=lambda one: one.score)
    raise NotSelectedError(best.reason, best.outcome, best.explanation)


def _the_only_image(images: Sequence[Path]) -> Path:
    if not images:
        raise MissingImageError("the case has no image")
    if len(images) > 1:
        raise SeveralImagesError(f"{len(images)} images for one session")
    if not images[0].exists():
        raise MissingImageError("the image is not there")
    return images[0]


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; None: not there."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def input_digest(paths: Sequence[Path]) -> str | None:
    """Of files, and of all files of folders with their names, which order pictures; None: none."""
    if not paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for one in files:
            if one.is_file():
                name = one.relative_to(path) if path.is_dir() else ""
                digest.update(f"{name}\0{file_digest(one)}\0".encode())
    return digest.hexdigest()
