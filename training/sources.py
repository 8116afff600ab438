"""The cases the starter model learns from: real, semi-synthetic and partially labelled FLAIR.

Everything here is read from the data folder of the project (README there); prepared stacks are kept
in a scratch folder, because five members read the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom.volume import Volume, read_nifti
from pipeline.brain import BrainMask, strip_skull
from pipeline.morphology import Mask, depth_in_plane_mm
from pipeline.orientation import axial_view
from pipeline.preprocess import (
    Array,
    CanvasSpec,
    Placement,
    core_median,
    place,
    resample_to_canvas,
)
from training.enlarge import paint_lesions

LABELLED = ("patient07", "patient19")
"""Patients with a full expert lesion mask, MNI 1 mm, skull-stripped by the publisher."""
HOST = "patient07"
"""Nearly free of lesions, so that lesions of other patients can be inserted."""
NATIVE = (
    ("patient01", "study1"),
    ("patient01", "study2"),
    ("patient03", "study1"),
    ("patient03", "study2"),
    ("patient04", "study1"),
    ("patient19", "study1"),
    ("patient19", "study2"),
    ("patient20", "study2"),
)
"""Clinical scans with a mask of what changed. The archive numbers its two cohorts separately:
patient19 here is not known to be patient19 of `LABELLED`."""
NATIVE_PATIENTS = ("patient01", "patient03", "patient04", "patient19", "patient20")

SYNTHETIC_VARIANTS = 2  # draws of contrast and texture per donor; more change nothing measurable
MARGIN_PIXELS = 6  # around the brain box: room for the widened mask and for rim artefacts

CHANGED_IS_LESION = 1.15  # x core median; a changed voxel this bright is lesion in this study
IS_NO_LESION = 1.12  # x core median; the 5th percentile of lesion voxels is 1.11 to 1.15 of WM
TOO_BRIGHT_FOR_LESION = 1.95  # x core median; labelled lesions reach 1.93, orbital fat 2.0 to 3.3
EDGE_IS_NO_LESION_MM = 4.0  # bright rim is scalp, fat or cortex far more often than lesion

Kind = Literal["slab", "slices"]


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """One prepared case. Intensities are in units of the core median; pixels are 1 mm."""

    name: str
    kind: Kind
    """slab: 1 mm isotropic, running sums along the slices (`slab_mean`). slices: as acquired."""
    values: npt.NDArray[np.float32]
    """(slices [+ 1 for the leading 0 of a running sum], rows, columns, channels): intensity,
    lesion, brain and, for partial labels, ignored."""
    lesion_slices: npt.NDArray[np.int64]
    brain_slices: npt.NDArray[np.int64]


def load_stack(folder: Path, name: str) -> Stack:
    """A stack that `prepare_sources` wrote, memory-mapped: members share its pages."""
    index = np.load(folder / f"{name}.index.npz")
    return Stack(
        name=name,
        kind="slab" if bool(index["slab"]) else "slices",
        values=np.load(folder / f"{name}.npy", mmap_mode="r"),
        lesion_slices=index["lesion_slices"],
        brain_slices=index["brain_slices"],
    )


def synthetic_name(donor: str, variant: int) -> str:
    """Name of the stack with a donor's lesions in the host."""
    return f"{HOST}-with-{donor}-{variant}"


def native_name(patient: str, study: str) -> str:
    """Name of the stack of a clinical scan."""
    return f"native-{patient}-{study}"


def donors(data: Path) -> list[str]:
    """Patients whose lesion mask can be inserted into the host."""
    names = sorted(
        path.name.removesuffix(".nii.gz") for path in (data / "lesion_masks_mni").glob("*.nii.gz")
    )
    return [name for name in names if name != HOST]


def prepare_sources(data: Path, cache: Path, report: Callable[[str], None]) -> None:
    """Write every stack that is not in the cache yet."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, build in _recipes(data):
        if not (cache / f"{name}.index.npz").is_file():
            report(name)
            _write(cache, name, *build())


def _recipes(data: Path) -> Iterator[tuple[str, Callable[[], tuple[Kind, Array]]]]:
    for patient in LABELLED:
        yield patient, lambda patient=patient: ("slab", labelled_slices(data, patient))  # type: ignore[misc]
    for patient, study in NATIVE:
        yield (
            native_name(patient, study),
            lambda patient=patient, study=study: ("slices", native_slices(data, patient, study)),  # type: ignore[misc]
        )
    host: list[Host] = []
    for donor in donors(data):
        for variant in range(SYNTHETIC_VARIANTS):

            def build(donor: str = donor, variant: int = variant) -> tuple[Kind, Array]:
                if not host:
                    host.append(read_host(data))
                mask = _canonical(data / "lesion_masks_mni" / f"{donor}.nii.gz") > 0.5
                seed = [int(donor.removeprefix("patient")), variant]
                return "slab", insert_lesions(host[0], mask, np.random.default_rng(seed))

            yield synthetic_name(donor, variant), build


def _write(cache: Path, name: str, kind: Kind, values: Array) -> None:
    lesion_slices = np.flatnonzero((values[..., 1] > 0.5).any(axis=(1, 2)))
    brain_slices = np.flatnonzero((values[..., 2] > 0.5).sum(axis=(1, 2)) > 100)
    if kind == "slab":
        values = running_sum(values)
    np.save(cache / f"{name}.npy", values)
    np.savez(
        cache / f"{name}.index.npz",  # last: its presence says that the stack is whole
        slab=np.array(kind == "slab"),
        lesion_slices=lesion_slices,
        brain_slices=brain_slices,
    )


def running_sum(values: Array) -> Array:
    """Sums of all slices before each slice: the mean of any slab is a difference of two."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]), np.float32)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


# --- real scans with a full expert mask -------------------------------------------------------


def labelled_slices(data: Path, patient: str) -> Array:
    """(slices, rows, columns, 3) of a labelled patient: intensity, lesion, brain."""
    folder = data / "ms_mni" / patient
    flair = read_nifti(folder / "flair.nii.gz")
    brain = _nifti_mask(folder / "brain.nii.gz")
    lesion = _nifti_mask(folder / "lesion.nii.gz")
    return _cropped(_on_canvas(flair, brain, [lesion]), keep_outside=False)


def _nifti_mask(path: Path) -> Mask:
    return read_nifti(path).voxels > 0.5


def _canonical(path: Path) -> Array:
    volume = read_nifti(path)
    return axial_view(volume.grid).apply(volume.voxels)


def _on_canvas(
    volume: Volume, brain: Mask, others: Sequence[Mask], placement: Placement | None = None
) -> Array:
    """Intensity / core median, the first other mask, brain, further masks: on the canvas.

    The same placement, resampling and median as `pipeline.preprocess.prepare`.
    """
    view = axial_view(volume.grid)
    spec = CanvasSpec()
    canonical = view.apply(brain)
    placement = placement or place(canonical, view, spec)
    brain_on_canvas = resample_to_canvas(canonical, placement)
    intensities = resample_to_canvas(view.apply(volume.voxels), placement)
    median = core_median(intensities, brain_on_canvas > 0.5, spec.pixel_mm)
    masks = [resample_to_canvas(view.apply(mask), placement) for mask in others]
    return np.stack([intensities / median, masks[0], brain_on_canvas, *masks[1:]], axis=-1)


def _cropped(values: Array, *, keep_outside: bool) -> Array:
    """The brain box and a margin, equal on both sides of the canvas centre."""
    brain = np.any(values[..., 2] > 0.5, axis=0)
    rows, columns = brain.shape
    half_rows = int(np.abs(np.flatnonzero(brain.any(axis=1)) - rows // 2).max()) + MARGIN_PIXELS
    half_columns = (
        int(np.abs(np.flatnonzero(brain.any(axis=0)) - columns // 2).max()) + MARGIN_PIXELS
    )
    cut = values[
        :,
        max(0, rows // 2 - half_rows) : rows // 2 + half_rows + 1,
        max(0, columns // 2 - half_columns) : columns // 2 + half_columns + 1,
    ].copy()
    if not keep_outside:
        cut[..., 0] *= cut[..., 2] > 0.5
    return cut


# --- clinical scans with partial labels ---------------------------------------------------------


def native_slices(data: Path, patient: str, study: str) -> Array:
    """(slices, rows, columns, 4) of a clinical scan: intensity, lesion, brain, ignored.

    Intensities outside the brain are kept: training draws how far the mask is widened.
    """
    folder = data / "longitudinal" / patient
    flair = read_nifti(folder / f"{study}_flair.nii.gz")
    change = _nifti_mask(folder / f"{study}_change.nii.gz")
    brain: BrainMask = strip_skull(flair)
    values = _cropped(_on_canvas(flair, brain.mask, [change]), keep_outside=True)
    lesion, ignored = partial_labels(values[..., 0], values[..., 1] > 0.5, values[..., 2] > 0.5)
    return np.stack([values[..., 0], lesion, values[..., 2], ignored], axis=-1).astype(np.float32)


def partial_labels(intensity: Array, changed: Mask, brain: Mask) -> tuple[Mask, Mask]:
    """What a change mask and the intensity (in core medians) say for certain: (lesion, ignored)."""
    lesion = changed & brain & (intensity > CHANGED_IS_LESION)
    depth = depth_in_plane_mm(brain, (1.0, 1.0, 1.0))
    healthy = (
        (intensity < IS_NO_LESION)
        | (intensity > TOO_BRIGHT_FOR_LESION)
        | (depth < EDGE_IS_NO_LESION_MM)
    )
    return lesion, ~lesion & ~healthy


# --- lesions of other patients in the host -----------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """A labelled scan that lesions are inserted into."""

    values: Array
    """(slices, rows, columns, 3): as `labelled_slices`, not cropped."""
    white_matter: float
    """FLAIR of white matter, in core medians."""
    insertable: Mask
    """White matter and its rim, 2 mm away from the host's own lesions."""
    placement: Placement
    """Of the host on the canvas; donor masks lie on the same MNI grid."""


def read_host(data: Path) -> Host:
    """Patient 07 with the white matter that its T1 shows."""
    folder = data / "ms_mni" / HOST
    flair, t1 = read_nifti(folder / "flair.nii.gz"), read_nifti(folder / "t1.nii.gz")
    brain = _nifti_mask(folder / "brain.nii.gz")
    lesion = _nifti_mask(folder / "lesion.nii.gz")
    cut = _upper_otsu(t1.voxels[brain])
    white = ndimage.binary_opening(brain & (t1.voxels > cut))
    near = ndimage.binary_dilation(ndimage.binary_closing(white, iterations=2))
    own = ndimage.binary_dilation(lesion, iterations=2)
    view = axial_view(flair.grid)
    placement = place(view.apply(brain), view, CanvasSpec())
    values = _on_canvas(flair, brain, [lesion, white, near & brain & ~own], placement)
    return Host(
        values=values[..., :3],
        placement=placement,
        white_matter=float(np.median(values[..., 0][values[..., 3] > 0.5])),
        insertable=values[..., 4] > 0.5,
    )


def _upper_otsu(values: npt.NDArray[np.float32]) -> float:
    """The upper of the two cuts that split intensities in three classes."""
    from skimage.filters import threshold_multiotsu

    return float(threshold_multiotsu(values, classes=3)[1])  # type: ignore[no-untyped-call]


def insert_lesions(host: Host, donor: Mask, rng: np.random.Generator) -> Array:
    """A donor's lesions (canonical view, MNI grid) painted into the host, which has 1 mm voxels."""
    on_canvas = (resample_to_canvas(donor, host.placement) > 0.5) & host.insertable
    values = host.values.copy()
    values[..., 0] = paint_lesions(
        values[..., 0], on_canvas, (1.0, 1.0, 1.0), host.white_matter, rng
    )
    values[..., 1] = np.maximum(values[..., 1], on_canvas)
    return _cropped(values, keep_outside=False)
