"""What is refused before any work, and what a reader is told of a mask and its lesions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicom.errors import (
    BlankImageError,
    ImplausibleGeometryError,
    IncompleteSeriesError,
    NotFiniteError,
    Outcome,
    StudyError,
)
from dicom.volume import Grid, Volume, read_nifti
from pipeline.brain import BrainMask, premasked, strip_skull, supplied_mask
from pipeline.findings import measure
from pipeline.lesions import LesionMap
from pipeline.model_pack import Extractor, ValidatedGeometry
from pipeline.morphology import dilate_in_plane_mm
from pipeline.orientation import axial_view
from pipeline.quality import (
    LEAST_CORRELATION,
    BrainMeasures,
    Flag,
    NoiseImageError,
    Quality,
    _brain_flags,
    _input_flags,
    gate,
    header_flags,
    judge,
    measure_brain,
    neighbour_correlation,
)
from tests.conftest import FlairSeries, oblique_affine
from tests.pipeline.heads import (
    ALL_SCANS,
    SHAPE,
    SPACING_MM,
    ellipsoid_head,
    flair,
    mask_of,
    stripped,
    stripped_head,
    thick_flair,
)
from tests.pipeline.tiny_pack import manifest

pytestmark = pytest.mark.timeout(300)  # seconds of one free core; minutes of a crowded one


def volume_of(
    shape: tuple[int, int, int] = SHAPE, spacing_mm: tuple[float, float, float] = SPACING_MM
) -> Volume:
    """A smooth picture of that size."""
    axes = [np.linspace(-1, 1, length) for length in shape]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    voxels = (100 * (1.8 - radius)).astype(np.float32)
    return Volume(voxels, Grid(oblique_affine(spacing_mm), shape))


def refused(volume: Volume) -> str:
    with pytest.raises(StudyError) as caught:
        gate(volume)
    assert caught.value.outcome is Outcome.NOT_ANALYSED
    return caught.value.reason


# The gate ------------------------------------------------------------------------------------


def test_a_head_passes_the_gate() -> None:
    gate(ellipsoid_head()[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_voxel_that_is_not_finite_is_refused(value: float) -> None:
    volume = volume_of()
    volume.voxels[3, 4, 5] = value
    with pytest.raises(NotFiniteError, match="1 of"):
        gate(volume)


@pytest.mark.parametrize("value", [0.0, 777.0])
def test_a_blank_volume_is_refused(value: float) -> None:
    volume = volume_of()
    volume.voxels[:] = value
    with pytest.raises(BlankImageError):
        gate(volume)


def test_a_blank_volume_with_a_few_hot_pixels_is_refused() -> None:
    volume = volume_of()
    volume.voxels[:] = 0
    volume.voxels[:, 60, 60] = 4000
    assert refused(volume) == "blank-image"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", ["uniform", "normal", "rician"])
def test_random_pixels_are_refused(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = {
        "uniform": rng.integers(0, 4096, SHAPE),
        "normal": rng.normal(500, 100, SHAPE),
        "rician": np.hypot(rng.normal(size=SHAPE), rng.normal(size=SHAPE)),
    }[kind]
    volume = Volume(noise.astype(np.float32), volume_of().grid)
    assert abs(neighbour_correlation(volume)) < 0.02
    with pytest.raises(NoiseImageError, match="correlate"):
        gate(volume)


def test_random_pixels_that_a_scanner_interpolated_are_refused() -> None:
    noise = np.random.default_rng(0).normal(size=(10, 128, 128))
    spectrum = np.fft.fftshift(np.fft.fft2(noise), axes=(1, 2))
    doubled = np.fft.ifft2(np.fft.ifftshift(np.pad(spectrum, ((0, 0), (64, 64), (64, 64)))))
    volume = Volume(
        np.abs(doubled).astype(np.float32),
        Grid(oblique_affine((6.5, 0.9, 0.9)), (10, 256, 256)),
    )
    assert refused(volume) == "noise-image"


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "reason"),
    [
        ((7, 128, 112), (6.5, 1.8, 1.6), "too-few-slices"),
        ((24, 63, 112), (6.5, 3.0, 1.6), "implausible-geometry"),
        ((24, 128, 112), (12.0, 1.8, 1.6), "implausible-geometry"),
        ((24, 128, 112), (6.5, 0.1, 1.6), "implausible-geometry"),
        ((8, 128, 112), (4.0, 1.8, 1.6), "implausible-geometry"),  # 32 mm of a head
        ((24, 256, 256), (6.5, 2.0, 1.0), "implausible-geometry"),  # 512 mm wide
        ((24, 128, 112), (6.5, 0.9, 0.9), "implausible-geometry"),  # 101 mm wide
    ],
)
def test_sizes_that_no_head_has_are_refused(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], reason: str
) -> None:
    volume = volume_of(shape, spacing_mm)
    assert refused(volume) == reason
    error = IncompleteSeriesError if reason == "too-few-slices" else ImplausibleGeometryError
    with pytest.raises(error):
        gate(volume)


@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((24, 512, 512), (6.5, 0.43, 0.43)),
        ((182, 218, 182), (1.0, 1.0, 1.0)),
        ((48, 320, 320), (3.0, 0.72, 0.72)),
        ((20, 256, 208), (5.0, 0.9, 0.9)),
    ],
)
def test_sizes_of_everyday_scans_pass(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    gate(volume_of(shape, spacing_mm))


def test_sheared_voxels_are_refused() -> None:
    volume = volume_of()
    affine = volume.grid.affine.copy()
    affine[:3, 0] += 0.1 * affine[:3, 1] / SPACING_MM[1] * SPACING_MM[0]
    with pytest.raises(ImplausibleGeometryError, match="right angles"):
        gate(Volume(volume.voxels, Grid(affine, SHAPE)))


def test_sagittal_slices_pass_the_gate() -> None:
    volume = volume_of((100, 100, 100), (1.8, 1.8, 1.8))
    gate(Volume(volume.voxels, Grid(volume.grid.affine[:, [2, 0, 1, 3]], volume.grid.shape)))


# Brain masks ---------------------------------------------------------------------------------

GOOD = BrainMeasures(
    volume_ml=1400,
    largest_area_cm2=165,
    extent_mm=135,
    empty_slices=0,
    largest_step=0.12,
    lowest_slice_share=0.05,
    highest_slice_share=0.10,
    border_slices=0,
    main_share=1.0,
    hole_share=0.0,
    rim_contrast=0.55,
    bright_rim_share=0.01,
    left_right_dice=0.96,
    tissue_spread=0.18,
    darkest_share=0.25,
    inside_surface=0.9995,
    share_of_surface=0.87,
)


def flags_of(**changes: float) -> list[tuple[str, str]]:
    return [(flag.code, flag.severity) for flag in _brain_flags(replace(GOOD, **changes))]


def test_a_good_mask_raises_no_flag() -> None:
    assert flags_of() == []


@pytest.mark.parametrize(
    ("measure_name", "value", "flag"),
    [
        ("volume_ml", 749, ("brain-too-small", "fail")),
        ("volume_ml", 999, ("brain-too-small", "review")),
        ("volume_ml", 1751, ("brain-too-large", "review")),
        ("volume_ml", 2001, ("brain-too-large", "fail")),
        ("largest_area_cm2", 109, ("brain-area-small", "review")),
        ("largest_area_cm2", 231, ("brain-area-large", "review")),
        ("extent_mm", 94, ("brain-short", "review")),
        ("empty_slices", 1, ("brain-gap", "review")),
        ("largest_step", 0.36, ("brain-step", "review")),
        ("lowest_slice_share", 0.31, ("brain-cut-off-below", "review")),
        ("highest_slice_share", 0.31, ("brain-cut-off-above", "review")),
        ("border_slices", 1, ("brain-at-border", "review")),
        ("main_share", 0.97, ("brain-in-pieces", "review")),
        ("hole_share", 0.006, ("brain-holes", "review")),
        ("rim_contrast", 0.29, ("brain-edge-unclear", "review")),
        ("rim_contrast", 0.14, ("brain-edge-unclear", "fail")),
        ("bright_rim_share", 0.07, ("brain-rim-bright", "review")),
        ("bright_rim_share", 0.41, ("brain-rim-bright", "fail")),
        ("left_right_dice", 0.79, ("brain-lopsided", "review")),
        ("inside_surface", 0.97, ("brain-outside-second-answer", "review")),
        ("inside_surface", 0.89, ("brain-outside-second-answer", "fail")),
        ("share_of_surface", 0.77, ("brain-smaller-than-second-answer", "review")),
        ("share_of_surface", 0.49, ("brain-smaller-than-second-answer", "fail")),
        ("share_of_surface", 0.98, ("brain-larger-than-second-answer", "review")),
        ("share_of_surface", 1.16, ("brain-larger-than-second-answer", "fail")),
    ],
)
def test_each_limit_raises_its_own_flag(
    measure_name: str, value: float, flag: tuple[str, str]
) -> None:
    assert flags_of(**{measure_name: value}) == [flag]


def test_a_second_answer_that_was_not_made_raises_no_flag() -> None:
    assert flags_of(inside_surface=nan, share_of_surface=nan) == []


def test_a_flag_names_the_figure_in_words_for_a_reader() -> None:
    (flag,) = _brain_flags(replace(GOOD, highest_slice_share=0.42))
    assert flag.message == (
        "The brain is cut off at the highest slice: its area there is 42% of the largest."
        " Lesions above the stack cannot be found."
    )


def test_a_ball_of_one_fluid_is_no_brain() -> None:
    volume, _ = ellipsoid_head()
    index = np.indices(SHAPE).transpose(1, 2, 3, 0) - (np.array(SHAPE) - 1) / 2
    ball = np.linalg.norm(index * SPACING_MM, axis=-1) < 68
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    phantom = Volume(np.abs(100 * ball + noise).astype(np.float32), volume.grid)
    gate(phantom)
    measures = measure_brain(phantom, strip_skull(phantom))
    assert measures.volume_ml == pytest.approx(1317, rel=0.1)
    assert ("no-tissue-contrast", "fail") in [(f.code, f.severity) for f in _brain_flags(measures)]


def test_a_mask_of_one_voxel_is_measured_and_fails() -> None:
    volume, _ = ellipsoid_head()
    mask = np.zeros(SHAPE, bool)
    mask[12, 64, 56] = True
    brain = BrainMask(mask, volume.grid, "supplied", "")
    assert ("brain-too-small", "fail") in [
        (flag.code, flag.severity) for flag in _brain_flags(measure_brain(volume, brain))
    ]


@pytest.mark.parametrize("kind", ["everything", "noise", "one half"])
def test_masks_that_have_nothing_to_do_with_the_brain_fail(kind: str) -> None:
    volume, truth = ellipsoid_head()
    wrong = {
        "everything": np.ones(SHAPE, bool),
        "noise": np.random.default_rng(0).random(SHAPE) > 0.5,
        "one half": truth & (np.arange(SHAPE[2]) < SHAPE[2] // 2),
    }[kind]
    flags = brain_codes(volume, BrainMask(wrong, volume.grid, "supplied", ""))
    assert "fail" in [severity for _, severity in flags], flags


# The verdict ---------------------------------------------------------------------------------


def lesion_map(
    labels: np.ndarray | None = None, disagreement: np.ndarray | float = 0.0
) -> LesionMap:
    labels = np.zeros(SHAPE, np.int32) if labels is None else labels.astype(np.int32)
    spread = np.broadcast_to(np.asarray(disagreement, np.float32), SHAPE)
    return LesionMap(
        probability=(labels > 0).astype(np.float32),
        disagreement=spread,
        labels=labels,
        grid=ellipsoid_head()[0].grid,
        dropped_small=0,
        dropped_leaks=0,
    )


def verdict(
    lesions: LesionMap | None = None, brain: BrainMask | None = None, **changes: object
) -> Quality:
    lesions = lesions or lesion_map()
    volume, _ = ellipsoid_head()
    return judge(volume, brain or stripped_head(), lesions, measure(lesions), manifest(**changes))


def codes(quality: Quality) -> list[str]:
    return [flag.code for flag in quality.flags]


@pytest.fixture
def _good_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the other flags: measuring a brain takes a second or two."""
    monkeypatch.setattr("pipeline.quality.measure_brain", lambda *_: GOOD)


def test_a_good_head_without_lesions_passes() -> None:
    quality = verdict()
    assert quality.verdict == "pass", quality.flags
    assert quality.measures["volume_ml"] == pytest.approx(1330, rel=0.05)
    assert json.loads(json.dumps(quality.as_json()))["verdict"] == "pass"


def test_the_worst_flag_decides_and_comes_first() -> None:
    review, fail = Flag("a", "", "review"), Flag("b", "", "fail")
    assert Quality().verdict == "pass"
    assert Quality((review,)).verdict == "review"
    assert Quality((review, fail)).verdict == "fail"


def test_a_failed_brain_comes_before_what_else_is_to_be_said() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[10:14, 50:70, 40:60] = True
    brain = BrainMask(mask, ellipsoid_head()[0].grid, "supplied", "")
    quality = verdict(brain=brain)
    assert quality.verdict == "fail"
    assert quality.flags[0].severity == "fail"
    assert "brain-mask-supplied" in codes(quality)


@pytest.mark.usefixtures("_good_measures")
def test_flags_of_the_headers_stand_among_the_others() -> None:
    lesions, (volume, _) = lesion_map(), ellipsoid_head()
    flag = Flag("after-contrast", "After contrast.", "review")
    quality = judge(volume, stripped_head(), lesions, measure(lesions), manifest(), [flag])
    assert (codes(quality), quality.verdict) == (["after-contrast"], "review")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, []),
        ({"ContrastBolusAgent": "GADOVIST"}, ["after-contrast"]),
        ({"SeriesDescription": "FLAIR +C"}, ["after-contrast"]),
        ({"ContrastBolusAgent": "none"}, []),
    ],
)
def test_contrast_medium_is_review(
    make_flair_series: Callable[..., FlairSeries],
    overrides: dict[str, str],
    expected: list[str],
) -> None:
    flags = header_flags(make_flair_series(overrides=overrides).series)
    assert [flag.code for flag in flags] == expected
    assert all("GADOVIST" not in flag.message for flag in flags)


@pytest.mark.usefixtures("_good_measures")
def test_a_supplied_mask_is_review() -> None:
    volume, truth = ellipsoid_head()
    brain = supplied_mask(Volume(truth.astype(np.float32), volume.grid), volume.grid)
    assert codes(verdict(brain=brain)) == ["brain-mask-supplied"]


@pytest.mark.usefixtures("_good_measures")
def test_another_extractor_than_the_packs_is_review() -> None:
    ours = Extractor(method="surface-refine", version="1")
    newer = Extractor(method="surface-refine", version="2")
    assert codes(verdict(extractors=(ours,))) == []
    assert codes(verdict(extractors=(newer, ours))) == []
    assert codes(verdict(extractors=(newer,))) == ["other-brain-extractor"]


@pytest.mark.usefixtures("_good_measures")
@pytest.mark.parametrize(
    ("slice_mm", "pixel_mm", "expected"),
    [
        ((3.0, 6.5), (1.6, 1.8), []),
        ((3.0, 5.0), (1.6, 1.8), ["slice-spacing-not-validated"]),
        ((3.0, 6.5), (0.4, 1.7), ["pixel-spacing-not-validated"]),
        ((7.0, 8.0), (1.7, 2.0), ["slice-spacing-not-validated", "pixel-spacing-not-validated"]),
    ],
)
def test_geometry_the_pack_was_not_tried_on_is_review(
    slice_mm: tuple[float, float], pixel_mm: tuple[float, float], expected: list[str]
) -> None:
    tried = ValidatedGeometry(slice_spacing_mm=slice_mm, pixel_spacing_mm=pixel_mm)
    assert codes(verdict(validated_geometry=tried)) == expected


@pytest.mark.usefixtures("_good_measures")
def test_members_that_disagree_over_the_lesions_are_review() -> None:
    labels = np.zeros(SHAPE, np.int32)
    labels[12, 60:64, 50:54] = 1
    assert codes(verdict(lesion_map(labels, disagreement=0.29))) == []
    assert codes(verdict(lesion_map(labels, 0.31 * (labels > 0)))) == ["models-disagree"]


@pytest.mark.usefixtures("_good_measures")
def test_brain_that_only_some_members_call_lesion_is_review() -> None:
    split = np.zeros(SHAPE)
    split[10:14, 60:70, 50:62] = 0.4  # 480 voxels of 18.72 mm3: 9.0 ml
    quality = verdict(lesion_map(disagreement=split))
    assert codes(quality) == ["models-split"]
    assert "9.0 ml" in quality.flags[0].message
    split[11:14] = 0  # 2.2 ml
    assert codes(verdict(lesion_map(disagreement=split))) == ["models-split"]
    split[10, 60:62] = 0  # 1.8 ml
    assert codes(verdict(lesion_map(disagreement=split))) == []


@pytest.mark.usefixtures("_good_measures")
def test_an_eighth_of_the_brain_in_lesions_is_review() -> None:
    labels = (stripped_head().mask & (np.arange(SHAPE[1]) < 48)[:, np.newaxis]).astype(np.int32)
    assert codes(verdict(lesion_map(labels))) == ["lesion-load-implausible"]


@pytest.mark.usefixtures("_good_measures")
@pytest.mark.parametrize(
    ("axes", "spacing_mm", "expected"),
    [
        ((2, 0, 1), (5.0, 0.9, 0.9), ["thick-slices-not-axial"]),  # sagittal
        ((1, 0, 2), (3.0, 0.9, 0.9), ["thick-slices-not-axial"]),  # coronal
        ((2, 0, 1), (1.0, 0.5, 0.5), []),
        ((2, 0, 1), (1.2, 1.0, 1.0), []),
        ((2, 0, 1), (2.5, 2.0, 2.0), []),  # coarse, but not thicker than wide
        ((0, 1, 2), (6.5, 0.5, 0.5), []),  # axial
    ],
)
def test_thick_sagittal_and_coronal_slices_are_review(
    axes: tuple[int, int, int], spacing_mm: tuple[float, float, float], expected: list[str]
) -> None:
    sorted_mm = [0.0, 0.0, 0.0]
    for axis, mm in zip(axes, spacing_mm, strict=True):
        sorted_mm[axis] = mm
    affine = oblique_affine((sorted_mm[0], sorted_mm[1], sorted_mm[2]))[:, [*axes, 3]]
    volume = Volume(np.ones((9, 9, 9), np.float32), Grid(affine, (9, 9, 9)))
    flags = list(_input_flags(volume, axial_view(volume.grid)))
    assert [(flag.code, flag.severity) for flag in flags] == [(code, "review") for code in expected]


@pytest.mark.usefixtures("_good_measures")
def test_images_that_were_compressed_with_loss_are_review() -> None:
    volume = replace(ellipsoid_head()[0], lossy=True)
    quality = judge(volume, stripped_head(), lesion_map(), measure(lesion_map()), manifest())
    assert (codes(quality), quality.verdict) == (["lossy-compression"], "review")


# Real FLAIR ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", ALL_SCANS)
def test_real_flair_passes_the_gate_with_room_to_spare(shared_data: Path, scan: str) -> None:
    for volume in (flair(shared_data, scan), thick_flair(shared_data, scan)):
        gate(volume)
        assert neighbour_correlation(volume) > 2 * LEAST_CORRELATION


def test_published_samples_of_random_pixels_are_refused(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "siemens_trio_flair3d_4slices"
    slices = [pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir())]
    voxels = np.stack(slices * 4).astype(np.float32)
    volume = Volume(voxels, Grid(oblique_affine((6.5, 0.9, 0.9)), voxels.shape))
    assert refused(volume) == "noise-image"


def brain_codes(volume: Volume, brain: BrainMask) -> list[tuple[str, str]]:
    return [(flag.code, flag.severity) for flag in _brain_flags(measure_brain(volume, brain))]


@pytest.mark.parametrize("scan", ALL_SCANS)
def test_a_good_mask_of_a_real_head_raises_no_flag(shared_data: Path, scan: str) -> None:
    assert brain_codes(flair(shared_data, scan), stripped(shared_data, scan)) == []


@pytest.mark.parametrize("study", ["study1", "study2"])
def test_a_mask_that_runs_outside_the_scalp_fails(shared_data: Path, study: str) -> None:
    volume = flair(shared_data, f"patient19/{study}")
    wrong = supplied_mask(mask_of(shared_data, f"patient19/{study}", "brain"), volume.grid)
    flags = brain_codes(volume, wrong)
    assert ("brain-outside-second-answer", "fail") in flags
    assert ("brain-edge-unclear", "fail") in flags


@pytest.mark.parametrize("study", ["study1", "study2"])
def test_a_mask_without_frontal_poles_is_review(shared_data: Path, study: str) -> None:
    volume = flair(shared_data, f"patient03/{study}")
    wrong = supplied_mask(mask_of(shared_data, f"patient03/{study}", "brain"), volume.grid)
    assert brain_codes(volume, wrong) == [
        ("brain-edge-unclear", "review"),
        ("brain-smaller-than-second-answer", "review"),
    ]


def with_bright_shell(
    data: Path, scan: str, near_mm: float, far_mm: float
) -> tuple[Volume, np.ndarray]:
    """A scan whose scalp is as bright as fat without suppression, right around the brain."""
    volume = flair(data, scan)
    brain = mask_of(data, scan, "brain").voxels > 0.5
    spacing_mm = volume.grid.spacing_mm
    shell = dilate_in_plane_mm(brain, spacing_mm, far_mm)
    if near_mm:
        shell &= ~dilate_in_plane_mm(brain, spacing_mm, near_mm)
    shell &= ~brain
    level = 2.0 * np.median(volume.voxels[brain])
    voxels = np.where(shell, level, volume.voxels).astype(np.float32)
    return Volume(voxels, volume.grid), dilate_in_plane_mm(brain, spacing_mm, far_mm)


@pytest.mark.parametrize("near_mm", [0.0, 2.0])
@pytest.mark.parametrize("scan", ["patient04/study1", "patient20/study2"])
def test_a_scalp_that_fools_our_own_strip_is_flagged(
    shared_data: Path, scan: str, near_mm: float
) -> None:
    volume, _ = with_bright_shell(shared_data, scan, near_mm, near_mm + 7)
    # Dice of these masks is .83 to .92 with what they should be.
    flags = dict(brain_codes(volume, strip_skull(volume)))
    assert flags["brain-rim-bright"] == ("review" if near_mm else "fail")


@pytest.mark.parametrize("scan", ["patient04/study1", "patient20/study2"])
def test_a_mask_with_a_bright_scalp_in_it_fails(shared_data: Path, scan: str) -> None:
    volume, wrong = with_bright_shell(shared_data, scan, 0.0, 7.0)
    brain = BrainMask(wrong, volume.grid, "supplied", "")
    assert ("brain-rim-bright", "fail") in brain_codes(volume, brain)


def test_a_stack_that_ends_in_the_brain_is_review(shared_data: Path) -> None:
    volume, brain = (
        flair(shared_data, "patient04/study1"),
        stripped(shared_data, "patient04/study1"),
    )
    keep = 36  # of 48 slices, from below
    grid = Grid(volume.grid.affine, (keep, *volume.grid.shape[1:]))
    cut = BrainMask(brain.mask[:keep], grid, "surface-refine", "1")
    assert ("brain-cut-off-above", "review") in brain_codes(Volume(volume.voxels[:keep], grid), cut)


@pytest.mark.parametrize("patient", ["patient07", "patient19"])
def test_a_brain_that_came_stripped_is_judged_without_a_second_answer(
    shared_data: Path, patient: str
) -> None:
    volume = read_nifti(shared_data / "ms_mni" / patient / "flair.nii.gz")
    gate(volume)
    assert brain_codes(volume, premasked(volume)) == []
