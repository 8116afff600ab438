from __future__ import annotations

import itertools
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from dicom.errors import (
    DuplicateSliceError,
    GantryTiltError,
    ImplausibleGeometryError,
    IncompleteSeriesError,
    InconsistentSeriesError,
    IrregularSpacingError,
    MissingAttributeError,
    MissingSliceError,
    MixedOrientationError,
    MultiFrameError,
    NotFiniteError,
    SeveralEchoesError,
    SeveralStacksError,
    StudyError,
    TruncatedFileError,
    UndecodableError,
    UnreadableError,
)
from dicom.series import Instance, Series, read_series
from dicom.volume import Grid, read_nifti, read_volume, stack_grid, write_nifti

MadeSeries = Any  # tests/conftest.py, FlairSeries
MakeSeries = Callable[..., MadeSeries]
DCMTK = Path("/usr/bin")  # by path: a virtual environment may hold namesakes


def refused(made: MadeSeries, error: type[StudyError], match: str | None = None) -> None:
    """Both the headers alone and the whole volume are refused, for the same reason."""
    for read in (stack_grid, read_volume):
        with pytest.raises(error, match=match) as caught:
            read(made.series)
        assert type(caught.value) is error


def refused_with_pixels(
    made: MadeSeries, error: type[StudyError], match: str | None = None
) -> None:
    stack_grid(made.series)
    with pytest.raises(error, match=match):
        read_volume(made.series)


# Where the voxels are


def test_voxels_and_their_positions_are_those_that_were_written(
    make_flair_series: MakeSeries,
) -> None:
    made = make_flair_series()
    volume = read_volume(made.series)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, made.voxels)
    np.testing.assert_allclose(volume.grid.affine, made.affine, atol=1e-8)
    assert volume.grid.shape == (10, 48, 36)
    assert volume.grid.spacing_mm == pytest.approx((6.5, 0.5, 0.75))
    assert volume.grid.voxel_volume_ml == pytest.approx(6.5 * 0.5 * 0.75 / 1000)
    assert volume.sop_instance_uids == made.sop_instance_uids


def test_a_position_can_be_checked_by_hand(make_flair_series: MakeSeries) -> None:
    # Columns run to the patient's left, 0.75 mm apart; rows to posterior, 0.5 mm apart (PS3.3
    # 10.7.1.3: PixelSpacing is row distance, then column distance); slices to superior.
    affine = np.array([[0, 0, 0.75, -10], [0, 0.5, 0, -20], [6.5, 0, 0, 30], [0, 0, 0, 1]])
    grid, _ = stack_grid(make_flair_series(affine=affine).series)
    np.testing.assert_allclose(grid.position_lps_mm((2, 4, 8)), [-10 + 6, -20 + 2, 30 + 13])


def test_slices_are_ordered_by_position_not_by_arrival_or_number(
    make_flair_series: MakeSeries,
) -> None:
    made = make_flair_series(instance_numbers=[3, 9, 1, 10, 2, 8, 4, 7, 6, 5])
    assert read_volume(made.series).sop_instance_uids == made.sop_instance_uids


def test_slice_thickness_is_not_the_distance_of_slices(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(overrides={"SliceThickness": "3.0", "SpacingBetweenSlices": "9.9"})
    assert stack_grid(made.series)[0].spacing_mm[0] == pytest.approx(6.5)


def test_slices_written_from_top_to_bottom_come_back_along_the_normal(
    make_flair_series: MakeSeries,
) -> None:
    up = make_flair_series()
    down = up.affine.copy()
    down[:3, 0] *= -1
    down[:3, 3] = (up.affine @ [9, 0, 0, 1])[:3]
    made = make_flair_series(affine=down, voxels=up.voxels[::-1])
    volume = read_volume(made.series)
    np.testing.assert_array_equal(volume.voxels, up.voxels)
    np.testing.assert_allclose(volume.grid.affine, up.affine, atol=1e-8)


def test_a_negated_column_direction_keeps_every_voxel_in_place(
    make_flair_series: MakeSeries,
) -> None:
    up = make_flair_series()
    turned = up.affine.copy()  # rows counted from posterior: the normal turns over as well
    turned[:3, 1] *= -1
    turned[:3, 3] = (up.affine @ [0, 47, 0, 1])[:3]
    volume = read_volume(make_flair_series(affine=turned, voxels=up.voxels[:, ::-1]).series)
    np.testing.assert_array_equal(volume.voxels, up.voxels[::-1, ::-1])
    for index in itertools.product((0, 9), (0, 47), (0, 35)):
        mirrored = (9 - index[0], 47 - index[1], index[2])
        np.testing.assert_allclose(
            volume.grid.position_lps_mm(mirrored), (up.affine @ [*index, 1])[:3], atol=1e-6
        )


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    quaternion = np.array([draw(st.floats(-1, 1)) for _ in range(4)])
    length = np.linalg.norm(quaternion)
    w, x, y, z = quaternion / length if length > 1e-3 else np.array([1.0, 0, 0, 0])
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def headers_of(affine: np.ndarray[Any, Any], slices: int) -> Series:
    """Headers that a scanner would write, decimal strings rounded to 16 characters and all."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    instances = []
    for index in range(slices):
        header = Dataset()
        header.SOPClassUID = MRImageStorage
        header.PatientID = "X"
        header.StudyInstanceUID, header.SeriesInstanceUID = "1.2", "1.2.3"
        header.FrameOfReferenceUID = "1.2.4"
        header.Rows, header.Columns = 7, 5
        header.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[2]:.10g}"]
        cosines = (*(affine[:3, 2] / spacing[2]), *(affine[:3, 1] / spacing[1]))
        header.ImageOrientationPatient = [f"{value:.8f}" for value in cosines]
        position = (affine @ [index, 0, 0, 1])[:3]
        header.ImagePositionPatient = [f"{value:.6f}" for value in position]
        instances.append(Instance(Path(f"{index}.dcm"), f"1.2.3.{index}", header))
    return Series("1.2", "1.2.3", tuple(instances))


@given(
    rotation=rotations(),
    spacing_mm=st.tuples(st.floats(0.5, 8), st.floats(0.3, 2), st.floats(0.3, 2)),
    origin=st.tuples(*[st.floats(-300, 300)] * 3),
    slices=st.integers(3, 12),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_oblique_geometry_is_read_back_in_any_order_of_arrival(
    rotation: np.ndarray[Any, Any],
    spacing_mm: tuple[float, float, float],
    origin: tuple[float, float, float],
    slices: int,
    data: st.DataObject,
) -> None:
    # Columns x, rows y, slices along x cross y: the order in which slices are returned.
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, [2, 1, 0]] * spacing_mm
    affine[:3, 3] = origin
    series = headers_of(affine, slices)
    shuffled = data.draw(st.permutations(series.instances))
    grid, ordered = stack_grid(replace(series, instances=tuple(shuffled)))
    assert [one.sop_instance_uid for one in ordered] == [f"1.2.3.{n}" for n in range(slices)]
    for corner in itertools.product((0, slices - 1), (0, 6), (0, 4)):
        np.testing.assert_allclose(
            grid.position_lps_mm(corner), (affine @ [*corner, 1])[:3], atol=1e-4
        )


# Stacks that are refused


@pytest.mark.parametrize("lost", [1, 4, 8])
def test_a_missing_slice_is_refused_not_interpolated(
    make_flair_series: MakeSeries, lost: int
) -> None:
    refused(make_flair_series(drop=[lost]), MissingSliceError, "1 slices missing.*13.000 mm")


def test_a_missing_slice_among_four_is_seen(make_flair_series: MakeSeries) -> None:
    refused(make_flair_series(slices=4, drop=[1]), MissingSliceError)


def test_several_missing_slices_are_counted(make_flair_series: MakeSeries) -> None:
    refused(make_flair_series(slices=12, drop=[3, 4, 8]), MissingSliceError, "3 slices missing")


def test_a_doubled_slice_is_refused(make_flair_series: MakeSeries) -> None:
    refused(make_flair_series(double=[5]), DuplicateSliceError, "1 of 11")


def test_two_time_points_in_one_series_are_refused(make_flair_series: MakeSeries) -> None:
    refused(make_flair_series(double=range(10)), DuplicateSliceError, "10 of 20")


@pytest.mark.parametrize(
    ("keyword", "values", "reason"),
    [
        ("EchoTime", ("30", "120"), "several-echoes"),
        ("InversionTime", ("400", "2500"), "several-inversion-times"),
        ("DiffusionBValue", (0.0, 1000.0), "several-diffusion-weightings"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
         "several-image-types"),
        ("TemporalPositionIdentifier", ("1", "2"), "several-time-points"),
        ("AcquisitionNumber", ("1", "2"), "several-time-points"),
        ("SeriesDescription", ("first", "second"), "duplicate-slice"),
    ],
)  # fmt: skip
def test_two_whole_stacks_are_refused_by_what_tells_them_apart(
    make_flair_series: MakeSeries, keyword: str, values: tuple[Any, Any], reason: str
) -> None:
    made = make_flair_series(double=range(10))
    for path in made.paths:
        image = pydicom.dcmread(path)
        setattr(image, keyword, values[path.stem.endswith("_1")])
        image.save_as(path)
    with pytest.raises(StudyError) as caught:
        stack_grid(made.series)
    assert caught.value.reason == reason


def test_a_doubled_slice_of_another_echo_is_no_second_stack(
    make_flair_series: MakeSeries,
) -> None:
    made = make_flair_series(double=[5])
    (path,) = [path for path in made.paths if path.stem.endswith("_1")]
    image = pydicom.dcmread(path)
    image.EchoTime = "30"
    image.save_as(path)
    refused(made, DuplicateSliceError)


def test_one_stack_of_two_echoes_is_refused(make_flair_series: MakeSeries) -> None:
    upper = {index: {"EchoTime": "30"} for index in range(5, 10)}
    refused(make_flair_series(per_slice=upper), SeveralEchoesError, "30 to 120 ms")


def test_interleaved_acquisitions_of_one_stack_are_one_volume(
    make_flair_series: MakeSeries,
) -> None:
    odd = {index: {"AcquisitionNumber": "2"} for index in range(1, 10, 2)}
    made = make_flair_series(per_slice=odd)
    np.testing.assert_array_equal(read_volume(made.series).voxels, made.voxels)


def test_two_crossing_stacks_are_refused_as_two(make_flair_series: MakeSeries) -> None:
    sagittal = {"ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"]}
    made = make_flair_series(per_slice=dict.fromkeys(range(6, 10), sagittal))
    refused(made, SeveralStacksError, "6 and 4 slices in 2 orientations")


def test_stacks_with_names_of_their_own_are_refused_though_they_fit_together(
    make_flair_series: MakeSeries,
) -> None:
    upper = {index: {"StackID": "2"} for index in range(5, 10)}
    refused(make_flair_series(per_slice=upper, overrides={"StackID": "1"}), SeveralStacksError)


def test_a_slice_out_of_step_is_refused(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    shifted = made.affine @ [4.3, 0, 0, 1]
    moved = {4: {"ImagePositionPatient": [f"{value:.5f}" for value in shifted[:3]]}}
    refused(make_flair_series(per_slice=moved), IrregularSpacingError)


def test_a_slice_moved_within_its_plane_is_refused(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    shifted = made.affine @ [4, 3, 0, 1]
    moved = {4: {"ImagePositionPatient": [f"{value:.5f}" for value in shifted[:3]]}}
    refused(make_flair_series(per_slice=moved), IrregularSpacingError, "1.5")


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_accepted(
    make_flair_series: MakeSeries,
) -> None:
    made = make_flair_series(spacing_mm=(7.0, 0.5, 0.75))
    rounded = {
        index: {"ImagePositionPatient": [f"{v:.1f}" for v in (made.affine @ [index, 0, 0, 1])[:3]]}
        for index in range(10)
    }
    grid, _ = stack_grid(make_flair_series(spacing_mm=(7.0, 0.5, 0.75), per_slice=rounded).series)
    assert grid.spacing_mm[0] == pytest.approx(7.0, abs=0.02)


@pytest.mark.parametrize("tilt_deg", [1.0, 15.0])
def test_a_tilted_stack_is_refused(make_flair_series: MakeSeries, tilt_deg: float) -> None:
    affine = make_flair_series().affine.copy()
    affine[:3, 0] += affine[:3, 1] / 0.5 * 6.5 * np.tan(np.radians(tilt_deg))
    refused(make_flair_series(affine=affine), GantryTiltError, f"{tilt_deg:.2f} degrees")


def test_three_orientations_in_one_series_are_refused(make_flair_series: MakeSeries) -> None:
    sagittal = {"ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"]}
    refused(make_flair_series(per_slice={7: sagittal}), MixedOrientationError)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", "SOMEBODY-ELSE"),
        ("StudyInstanceUID", "1.2.3.4"),
        ("FrameOfReferenceUID", "1.2.3.4"),
        ("PixelSpacing", ["0.6", "0.75"]),
    ],
)
def test_images_of_two_kinds_are_refused_without_naming_anybody(
    make_flair_series: MakeSeries, keyword: str, value: str | list[str]
) -> None:
    made = make_flair_series(per_slice={3: {keyword: value}})
    with pytest.raises(InconsistentSeriesError, match=keyword) as caught:
        stack_grid(made.series)
    assert "SOMEBODY" not in str(caught.value)


def test_images_of_two_sizes_are_refused(make_flair_series: MakeSeries) -> None:
    small = {"Rows": 24, "PixelData": bytes(24 * 36 * 2)}
    refused(make_flair_series(per_slice={3: small}), InconsistentSeriesError, "Rows")


@pytest.mark.parametrize("slices", [1, 2])
def test_two_slices_are_too_few(make_flair_series: MakeSeries, slices: int) -> None:
    refused(make_flair_series(slices=slices), IncompleteSeriesError)


@pytest.mark.parametrize(
    "keyword",
    [
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "FrameOfReferenceUID",
        "Rows",
    ],
)
def test_an_absent_attribute_is_named(make_flair_series: MakeSeries, keyword: str) -> None:
    refused(make_flair_series(overrides={keyword: None}), MissingAttributeError, keyword)


@pytest.mark.parametrize(
    "cosines", [["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["2", "0", "0", "0", "2", "0"]]
)
def test_directions_that_are_none_are_refused(
    make_flair_series: MakeSeries, cosines: list[str]
) -> None:
    made = make_flair_series(overrides={"ImageOrientationPatient": cosines})
    refused(made, ImplausibleGeometryError)


def test_a_size_that_would_fill_the_memory_is_refused_before_decoding(
    make_flair_series: MakeSeries,
) -> None:
    made = make_flair_series(overrides={"Rows": 65535, "Columns": 65535})
    refused(made, ImplausibleGeometryError, "65535 x 65535")


def test_many_frames_in_a_classic_image_are_refused(make_flair_series: MakeSeries) -> None:
    refused(make_flair_series(overrides={"NumberOfFrames": 20}), MultiFrameError, "20 frames")


# Declared counts


@pytest.mark.parametrize("keyword", ["ImagesInAcquisition", "NumberOfSlices"])
@pytest.mark.parametrize("lost", [0, 9])
def test_a_declared_count_tells_of_a_lost_end_slice(
    make_flair_series: MakeSeries, keyword: str, lost: int
) -> None:
    made = make_flair_series(overrides={keyword: 10}, drop=[lost])
    refused(made, IncompleteSeriesError, f"9 slices, {keyword} declares 10")


def test_half_a_series_is_noticed_by_its_numbering(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(overrides={"ImagesInAcquisition": 10}, drop=range(5))
    refused(made, IncompleteSeriesError, "5 slices")


@pytest.mark.parametrize(
    ("overrides", "per_slice"),
    [
        ({"ImagesInAcquisition": 1}, {}),  # a GE reformat: one in each
        ({"ImagesInAcquisition": 20}, {}),  # two echoes, each its own series numbered from 1
        ({"ImagesInAcquisition": 13}, {0: {"AcquisitionNumber": 7}}),  # two acquisitions
        ({"ImagesInAcquisition": 13}, {0: {"InstanceNumber": 40}}),  # numbered by the study
        ({"ImagesInAcquisition": 13}, {0: {"InstanceNumber": None}}),
        ({}, {0: {"ImagesInAcquisition": 13}}),  # not in every image
        ({"ImagesInAcquisition": 10}, {}),
    ],
)
def test_a_count_that_is_not_of_this_stack_is_not_believed(
    make_flair_series: MakeSeries, overrides: dict[str, Any], per_slice: dict[int, Any]
) -> None:
    made = make_flair_series(overrides=overrides, per_slice=per_slice)
    assert stack_grid(made.series)[0].shape[0] == 10


# Pixels


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_the_same_pixels_in_any_transfer_syntax_have_one_digest(
    make_flair_series: MakeSeries, syntax: str
) -> None:
    plain = read_volume(make_flair_series().series)
    made = make_flair_series(transfer_syntax_uid=syntax)
    volume = read_volume(made.series)
    np.testing.assert_array_equal(volume.voxels, made.voxels)
    assert volume.pixel_digest == plain.pixel_digest


@pytest.mark.skipif(not (DCMTK / "dcmcjpeg").exists(), reason="needs DCMTK")
def test_lossless_jpeg_of_another_maker_is_read(
    make_flair_series: MakeSeries, tmp_path: Path
) -> None:
    made = make_flair_series(slices=3)
    paths = []
    for path in made.paths:
        paths.append(tmp_path / f"jpeg_{path.name}")
        subprocess.run([DCMTK / "dcmcjpeg", "+e1", path, paths[-1]], check=True)
    np.testing.assert_array_equal(read_volume(read_series(paths)).voxels, made.voxels)


@pytest.mark.skipif(not (DCMTK / "dcmconv").exists(), reason="needs DCMTK")
def test_big_endian_pixels_are_read(make_flair_series: MakeSeries, tmp_path: Path) -> None:
    made = make_flair_series(slices=3)
    paths = []
    for path in made.paths:
        paths.append(tmp_path / f"big_{path.name}")
        subprocess.run([DCMTK / "dcmconv", "+tb", path, paths[-1]], check=True)
    np.testing.assert_array_equal(read_volume(read_series(paths)).voxels, made.voxels)


def test_each_slice_is_rescaled_by_its_own_factors(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(
        overrides={"RescaleSlope": "2", "RescaleIntercept": "-100"},
        per_slice={4: {"RescaleSlope": "0.5", "RescaleIntercept": "7"}},
    )
    voxels = read_volume(made.series).voxels
    np.testing.assert_allclose(voxels[3], made.voxels[3] * 2.0 - 100)
    np.testing.assert_allclose(voxels[4], made.voxels[4] * 0.5 + 7)


def test_signed_values_stay_signed(make_flair_series: MakeSeries) -> None:
    stored = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5) - 30
    bits = {"BitsStored": 16, "HighBit": 15}
    made = make_flair_series(voxels=stored, overrides=bits)
    np.testing.assert_array_equal(read_volume(made.series).voxels, stored)


def test_bits_beyond_those_stored_are_not_part_of_the_value(make_flair_series: MakeSeries) -> None:
    stored = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)
    made = make_flair_series(voxels=stored | 0xF000)  # overlays once lived in the upper bits
    np.testing.assert_array_equal(read_volume(made.series).voxels, stored)


@pytest.mark.parametrize("value", ["NaN", "inf", "abc"])
@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_factor_that_is_no_number_is_refused_not_ignored(
    make_flair_series: MakeSeries, keyword: str, value: str
) -> None:
    made = make_flair_series()
    dataset = pydicom.dcmread(made.paths[3])
    setattr(dataset, keyword, "12345678")
    dataset.save_as(made.paths[3])
    raw = made.paths[3].read_bytes()
    assert raw.count(b"12345678") == 1
    made.paths[3].write_bytes(raw.replace(b"12345678", value.ljust(8).encode()))
    refused_with_pixels(made, NotFiniteError, keyword)


def test_nan_among_floating_point_pixels_is_refused(make_flair_series: MakeSeries) -> None:
    values = np.full((48, 36), 7.5, "<f4")
    fine = {
        "PixelData": None,
        "BitsAllocated": 32,
        "BitsStored": None,
        "HighBit": None,
        "PixelRepresentation": None,
        "FloatPixelData": values.tobytes(),
    }
    made = make_flair_series(overrides=fine)
    np.testing.assert_array_equal(read_volume(made.series).voxels, np.full((10, 48, 36), 7.5))
    values[3, 4] = np.nan
    made = make_flair_series(overrides=fine, per_slice={5: {"FloatPixelData": values.tobytes()}})
    refused_with_pixels(made, NotFiniteError, "1 voxels")


def test_values_beyond_float32_are_refused(make_flair_series: MakeSeries) -> None:
    refused_with_pixels(make_flair_series(overrides={"RescaleSlope": "1e38"}), NotFiniteError)


def test_pixel_data_that_do_not_fill_the_image_are_refused(make_flair_series: MakeSeries) -> None:
    short = {3: {"PixelData": bytes(48 * 36 * 2 - 2)}}
    refused_with_pixels(make_flair_series(per_slice=short), TruncatedFileError, "3454 bytes.* 3456")


@pytest.mark.parametrize(
    "overrides",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0},
        {"PhotometricInterpretation": None},
        {"HighBit": 15},
    ],
)
def test_what_is_not_one_grey_value_per_pixel_is_refused(
    make_flair_series: MakeSeries, overrides: dict[str, Any]
) -> None:
    refused_with_pixels(make_flair_series(overrides=overrides), UndecodableError)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_damaged_compressed_pixels_are_refused(make_flair_series: MakeSeries, syntax: str) -> None:
    made = make_flair_series(transfer_syntax_uid=syntax)
    raw = bytearray(made.paths[4].read_bytes())
    start = raw.index(b"\xe0\x7f\x10\x00") + 40
    raw[start : start + 60] = bytes(60)
    made.paths[4].write_bytes(raw)
    refused_with_pixels(made, UndecodableError)


def test_an_unknown_transfer_syntax_is_refused(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    raw = made.paths[4].read_bytes()
    assert raw.count(b"1.2.840.10008.1.2.1\0") == 1
    made.paths[4].write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    refused_with_pixels(made, UndecodableError, "1.2.840.10008.1.2.9")


def test_a_file_that_changed_since_its_header_was_read_is_refused(
    make_flair_series: MakeSeries,
) -> None:
    made, other = make_flair_series(), make_flair_series(series_instance_uid="1.2.3")
    series = made.series
    made.paths[0].write_bytes(other.paths[0].read_bytes())
    with pytest.raises(InconsistentSeriesError, match="changed"):
        read_volume(series)
    made.paths[0].unlink()
    with pytest.raises(TruncatedFileError):
        read_volume(series)


def pydicom_images() -> Iterator[Path]:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return (path for path in sorted(folder.rglob("*.dcm")) if path.stat().st_size < 700_000)


def as_stack(path: Path, folder: Path) -> list[Path]:
    """Three slices of one image: its pixels reach the decoder whatever its geometry was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        if "PixelData" not in dataset or (number := dataset.get("NumberOfFrames")) not in (None, 1):
            return []
        del number
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        dataset.PixelSpacing = ["1", "1"]
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3"
        dataset.FrameOfReferenceUID = "1.2.3"
        dataset.SOPClassUID = MRImageStorage
        if not hasattr(dataset, "file_meta"):
            dataset.file_meta = FileMetaDataset()
        paths = []
        for index in range(3):
            dataset.ImagePositionPatient = ["0", "0", str(index)]
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name, str(index)])
            paths.append(folder / f"{path.name}_{index}.dcm")
            dataset.save_as(paths[-1], enforce_file_format=False)
    return paths


def test_every_image_of_pydicoms_tests_is_decoded_or_refused_with_a_reason(tmp_path: Path) -> None:
    outcomes: dict[str, str] = {}
    for path in pydicom_images():
        try:
            paths = as_stack(path, tmp_path)
        except (AttributeError, BytesLengthException, InvalidDicomError, TypeError, ValueError):
            continue  # pydicom itself cannot write it again
        if not paths:
            continue
        try:
            outcomes[path.name] = (
                f"volume, largest value {read_volume(read_series(paths)).voxels.max():g}"
            )
        except StudyError as error:
            outcomes[path.name] = f"{error.reason}: {error}"
    for name, outcome in outcomes.items():
        print(f"{name:45s} {outcome}")  # noqa: T201  # the table, with pytest -s
    assert len(outcomes) > 30
    decoded = {name for name, outcome in outcomes.items() if outcome.startswith("volume")}
    for name in ("MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"):
        assert outcomes[f"{name}.dcm"] == outcomes["MR_small.dcm"]
    assert {"MR_small_bigendian.dcm", "JPGExtended.dcm", "J2K_pixelrep_mismatch.dcm"} <= decoded


def test_real_slices_decode_to_what_dcmtk_decodes(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "siemens_aera_study" / "FLAIR_t2_flair_tra"
    volume = read_volume(read_series(sorted(folder.iterdir())))
    assert volume.grid.shape == (30, 320, 270)
    assert volume.grid.spacing_mm == pytest.approx((4.8, 0.71875, 0.71875), abs=1e-5)
    assert volume.voxels.max() == 982  # dcmdump and dcm2pnm of the same study


# NIfTI


def grid_of(affine: np.ndarray[Any, Any], shape: tuple[int, int, int]) -> Grid:
    return Grid(affine, shape)


@given(
    rotation=rotations(),
    spacing_mm=st.tuples(st.floats(0.5, 8), st.floats(0.3, 2), st.floats(0.3, 2)),
    dtype=st.sampled_from([np.float32, np.int16, np.int32, np.uint8, np.bool_]),
    reverse=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_as_nifti_is_read_back(
    rotation: np.ndarray[Any, Any],
    spacing_mm: tuple[float, float, float],
    dtype: type[np.generic],
    *,
    reverse: bool,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation[:, [2, 1, 0]] * spacing_mm
    affine[:3, 0] *= -1 if reverse else 1
    affine[:3, 3] = (-120.5, 33.25, 7.125)
    array = (np.arange(3 * 4 * 5).reshape(3, 4, 5) % 2).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.nii.gz"
        write_nifti(path, array, grid_of(affine, (3, 4, 5)))
        volume = read_nifti(path)
    np.testing.assert_array_equal(volume.voxels, array.astype(np.float32))
    np.testing.assert_allclose(volume.grid.affine, affine, atol=2e-5)
    assert volume.sop_instance_uids == ()
    assert volume.grid.frame_of_reference_uid == ""


def test_nifti_is_turned_from_ras_to_lps(tmp_path: Path) -> None:
    # Voxel (column 2, row 1, slice 0) at RAS (+20, +5, 3): LPS (-20, -5, 3).
    affine = np.array([[10.0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 7, 3], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), affine)
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_nifti(tmp_path / "x.nii")
    assert volume.grid.shape == (2, 3, 4)
    assert volume.voxels[0, 1, 2] == image.dataobj[2, 1, 0]
    np.testing.assert_allclose(volume.grid.position_lps_mm((0, 1, 2)), [-20, -5, 3])


def test_nifti_that_is_none_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    with pytest.raises(UnreadableError):
        read_nifti(path)
    path.write_bytes(b"not an image" * 100)
    with pytest.raises(UnreadableError):
        read_nifti(path)
    write_nifti(path, np.zeros((3, 4, 5), np.float32), grid_of(np.eye(4), (3, 4, 5)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TruncatedFileError):
        read_nifti(path)
    zipped = tmp_path / "y.nii.gz"
    noise = np.random.default_rng(1).normal(size=(9, 20, 20)).astype(np.float32)
    write_nifti(zipped, noise, grid_of(np.eye(4), (9, 20, 20)))
    zipped.write_bytes(zipped.read_bytes()[:-3000])
    with pytest.raises(TruncatedFileError):
        read_nifti(zipped)


def test_nifti_of_several_volumes_or_without_place_or_with_nan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2, 2), np.float32), np.eye(4)), path)
    with pytest.raises(InconsistentSeriesError):
        read_nifti(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.float32), None), path)
    with pytest.raises(MissingAttributeError):
        read_nifti(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.float32), np.eye(4)), path)
    raw = bytearray(path.read_bytes())
    raw[280:284] = bytes(4)  # srow_x[0]
    raw[252:254] = bytes(2)  # qform_code
    path.write_bytes(raw)
    with pytest.raises(ImplausibleGeometryError):
        read_nifti(path)
    nibabel.save(nibabel.Nifti1Image(np.full((4, 3, 2), np.nan, np.float32), np.eye(4)), path)
    with pytest.raises(NotFiniteError, match="24 voxels"):
        read_nifti(path)


def test_a_single_volume_with_a_time_axis_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 3, 2, 1), np.float32), np.eye(4)), path)
    assert read_nifti(path).grid.shape == (2, 3, 4)


def test_an_array_on_another_grid_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        write_nifti(tmp_path / "x.nii", np.zeros((3, 4, 6)), grid_of(np.eye(4), (3, 4, 5)))
