"""Enhanced MR: the same slices give the same volume, whoever wrote them and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

import dicom.volume
from dicom.attributes import number, text, values
from dicom.decoding import Decoder
from dicom.errors import (
    DuplicateSliceError,
    IncompleteSeriesError,
    InconsistentSeriesError,
    MissingAttributeError,
    MissingSliceError,
    RepeatedStackError,
    TruncatedFileError,
)
from dicom.frames import as_classic, frame_number, frames_of
from dicom.series import read_series
from dicom.volume import read_volume, slice_headers, stack_grid
from tests.enhanced import Style, write_enhanced

Make = Callable[..., Any]
REVERSED = tuple(range(9, -1, -1))
SHUFFLED = (3, 7, 0, 9, 1, 8, 2, 6, 4, 5)


# The same slices, the same volume


@pytest.mark.parametrize("style", ["shared", "per-frame"])
@pytest.mark.parametrize("order", [None, REVERSED, SHUFFLED])
@pytest.mark.parametrize("objects", [1, 3])
def test_an_enhanced_series_is_the_volume_of_its_classic_twin(
    make_flair_series: Make,
    tmp_path: Path,
    style: Style,
    order: tuple[int, ...] | None,
    objects: int,
) -> None:
    made = make_flair_series()
    classic = read_volume(made.series)
    series = write_enhanced(made, tmp_path / "e", style=style, order=order, objects=objects)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.voxels, classic.voxels)
    np.testing.assert_array_equal(volume.grid.affine, classic.grid.affine)
    assert volume.pixel_digest == classic.pixel_digest
    assert volume.grid.frame_of_reference_uid == classic.grid.frame_of_reference_uid


def test_a_volume_says_which_frame_lies_on_every_slice(
    make_flair_series: Make, tmp_path: Path
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", order=SHUFFLED, objects=2)
    first, second = sorted(series.instances, key=lambda one: int(one.header.InstanceNumber))
    # Frames are dealt in turn: 3 0 1 2 4 into the first object, 7 9 8 6 5 into the second.
    in_first = {0: 2, 1: 3, 2: 4, 3: 1, 4: 5}
    in_second = {5: 5, 6: 4, 7: 1, 8: 3, 9: 2}
    expected = {s: (first.sop_instance_uid, n) for s, n in in_first.items()}
    expected |= {s: (second.sop_instance_uid, n) for s, n in in_second.items()}
    assert dict(enumerate(read_volume(series).images)) == expected


def test_classic_images_have_no_frame_numbers(make_flair_series: Make) -> None:
    made = make_flair_series()
    volume = read_volume(made.series)
    assert volume.images == tuple((uid, None) for uid in made.sop_instance_uids)
    assert [frame_number(header) for header in slice_headers(made.series, volume)] == [None] * 10


def test_an_enhanced_object_of_one_frame_needs_no_frame_number(
    make_flair_series: Make, tmp_path: Path
) -> None:
    made = make_flair_series()
    series = write_enhanced(made, tmp_path / "e", objects=10)
    volume = read_volume(series)
    np.testing.assert_array_equal(volume.voxels, made.voxels)
    assert volume.frame_numbers == (None,) * 10


@pytest.mark.parametrize("style", ["shared", "per-frame"])
def test_every_frame_has_its_own_rescale(
    make_flair_series: Make, tmp_path: Path, style: Style
) -> None:
    made = make_flair_series()
    rescale = {2: (2.0, -5.0), 7: (0.5, 10.0)}
    series = write_enhanced(made, tmp_path / "e", style=style, order=REVERSED, rescale=rescale)
    expected = made.voxels.astype(np.float32)
    expected[2], expected[7] = expected[2] * 2 - 5, expected[7] * 0.5 + 10
    np.testing.assert_array_equal(read_volume(series).voxels, expected)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_frames_are_decoded_once_each(
    make_flair_series: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    made = make_flair_series()
    series = write_enhanced(made, tmp_path / "e", order=SHUFFLED, transfer_syntax_uid=syntax)
    read, decoded = [], []
    dcmread_once, frames_once = dicom.volume.pydicom.dcmread, dicom.volume.Decoder.frames
    monkeypatch.setattr(
        dicom.volume.pydicom, "dcmread", lambda *a, **k: read.append(a) or dcmread_once(*a, **k)
    )

    def counted(self: Decoder, path: Path, numbers: list[int]) -> Iterator[Any]:
        for pixels in frames_once(self, path, numbers):
            decoded.append(pixels.shape)
            yield pixels

    monkeypatch.setattr(dicom.volume.Decoder, "frames", counted)
    np.testing.assert_array_equal(read_volume(series).voxels, made.voxels)
    assert (len(read), decoded) == (1, [(48, 36)] * 10)


def test_a_legacy_conversion_by_another_program_is_the_volume_of_its_images(
    make_flair_series: Make, tmp_path: Path
) -> None:
    made = make_flair_series(per_slice={4: {"RescaleSlope": "2", "RescaleIntercept": "-3"}})
    images = [dcmread(path) for path in made.paths]
    for image in images:
        image.InstanceNumber = int(image.InstanceNumber)
    converted = LegacyConvertedEnhancedMRImage(
        legacy_datasets=images,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )
    converted.save_as(tmp_path / "legacy.dcm")
    series = read_series([tmp_path / "legacy.dcm"])
    volume, classic = read_volume(series), read_volume(made.series)
    np.testing.assert_array_equal(volume.voxels, classic.voxels)
    np.testing.assert_allclose(volume.grid.affine, classic.grid.affine, atol=1e-9)
    (flat, *_) = [one.header for one in as_classic(series).instances]
    assert (number(flat, "EchoTime"), number(flat, "InversionTime")) == (120, 2500)


# A flat header speaks as a classic image does


@pytest.mark.parametrize("style", ["shared", "per-frame"])
def test_a_flat_header_holds_physics_under_its_classic_names(
    make_flair_series: Make, tmp_path: Path, style: Style
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", style=style)
    (header, *_) = [frame.header for frame in frames_of(series)]
    times = [number(header, k) for k in ("RepetitionTime", "EchoTime", "InversionTime")]
    assert times == [9000, 120, 2500]
    assert values(header, "ScanningSequence") == ("SE", "IR")
    assert values(header, "ImageType") == ("ORIGINAL", "PRIMARY", "M", "NONE")
    assert text(header, "BodyPartExamined") == "BRAIN"
    assert text(header, "AcquisitionDate") == "20240102"
    assert text(header, "AcquisitionTime") == "101500.500000"
    assert text(header, "SeriesDescription") == "t2 flair tra"
    assert "NumberOfFrames" not in header
    assert len(as_classic(series).instances) == 10


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"ComplexImageComponent": "PHASE"}, ("ORIGINAL", "PRIMARY", "PHASE", "NONE")),
        (
            {"VolumeBasedCalculationTechnique": "MAX_IP"},
            ("ORIGINAL", "PRIMARY", "M", "NONE", "MAX_IP"),
        ),
        ({"VolumeBasedCalculationTechnique": "NONE"}, ("ORIGINAL", "PRIMARY", "M", "NONE")),
    ],
)
def test_a_flat_image_type_tells_of_phase_images_and_projections(
    make_flair_series: Make, tmp_path: Path, said: dict[str, str], expected: tuple[str, ...]
) -> None:
    repeats = [{"MRImageFrameTypeSequence": said}]
    series = write_enhanced(make_flair_series(), tmp_path / "e", repeats=repeats)
    assert {values(frame.header, "ImageType") for frame in frames_of(series)} == {expected}


def test_no_functional_group_changes_whose_images_these_are(
    make_flair_series: Make, tmp_path: Path
) -> None:
    wrong = {"FrameContentSequence": {"PatientID": "SOMEBODY-ELSE", "SOPInstanceUID": "1.2.3"}}
    series = write_enhanced(make_flair_series(), tmp_path / "e", repeats=[wrong])
    for frame in frames_of(series):
        assert text(frame.header, "PatientID") == "TEST-1"
        assert text(frame.header, "SOPInstanceUID") == frame.sop_instance_uid


def test_the_received_header_stays_as_it_was(make_flair_series: Make, tmp_path: Path) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e")
    before = series.header.to_json()
    frames_of(series)
    assert series.header.to_json() == before


# What is refused


@pytest.mark.parametrize(
    ("left_out", "keyword"),
    [
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ],
)
def test_an_absent_functional_group_is_named_by_what_it_would_have_said(
    make_flair_series: Make, tmp_path: Path, left_out: str, keyword: str
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", leave_out=[left_out])
    with pytest.raises(MissingAttributeError, match=keyword):
        stack_grid(series)


def test_without_a_pixel_value_transformation_stored_values_count(
    make_flair_series: Make, tmp_path: Path
) -> None:
    made = make_flair_series()
    series = write_enhanced(
        made, tmp_path / "e", leave_out=["PixelValueTransformationSequence", "FrameContentSequence"]
    )
    np.testing.assert_array_equal(read_volume(series).voxels, made.voxels)


def test_an_object_without_functional_groups_is_refused(
    make_flair_series: Make, tmp_path: Path
) -> None:
    gone = {"PerFrameFunctionalGroupsSequence": None, "SharedFunctionalGroupsSequence": None}
    series = write_enhanced(make_flair_series(), tmp_path / "e", overrides=gone)
    with pytest.raises(InconsistentSeriesError, match="10 frames describes 0"):
        read_volume(series)
    assert len(as_classic(series).instances) == 1


def test_more_frames_declared_than_pixels_or_groups_is_refused(
    make_flair_series: Make, tmp_path: Path
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", overrides={"NumberOfFrames": 12})
    with pytest.raises(InconsistentSeriesError, match="12 frames describes 10"):
        read_volume(series)
    cut = {"PixelData": bytes(9 * 48 * 36 * 2)}
    series = write_enhanced(make_flair_series(), tmp_path / "f", overrides=cut)
    with pytest.raises(TruncatedFileError):
        read_volume(series)


def test_a_missing_frame_is_a_missing_slice(make_flair_series: Make, tmp_path: Path) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", order=(0, 1, 2, 4, 5, 6, 7, 8, 9))
    with pytest.raises(MissingSliceError):
        stack_grid(series)


def test_a_lost_part_of_a_concatenation_is_seen(make_flair_series: Make, tmp_path: Path) -> None:
    series = write_enhanced(
        make_flair_series(),
        tmp_path / "e",
        order=(0, 1, 2, 3, 4),  # the upper half lies in the second part, which never came
        overrides={"InConcatenationNumber": 1, "InConcatenationTotalNumber": 2},
    )
    with pytest.raises(IncompleteSeriesError, match="1 of 2 parts"):
        stack_grid(series)


REPEATS: dict[str, tuple[str, list[dict[str, dict[str, object]]]]] = {
    "echoes": (
        "several-echoes",
        [{"MREchoSequence": {"EffectiveEchoTime": time}} for time in (30.0, 120.0)],
    ),
    "inversion times": (
        "several-inversion-times",
        [{"MRModifierSequence": {"InversionTimes": time}} for time in (400.0, 2500.0)],
    ),
    "b-values": (
        "several-diffusion-weightings",
        [{"MRDiffusionSequence": {"DiffusionBValue": b}} for b in (0.0, 1000.0)],
    ),
    "magnitude and phase": (
        "several-image-types",
        [
            {"MRImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "PRIMARY", part, "NONE"]}}
            for part in ("M", "P")
        ],
    ),
    "stacks": (
        "several-stacks",
        [{"FrameContentSequence": {"StackID": stack}} for stack in ("1", "2")],
    ),
    "time points": (
        "several-time-points",
        [{"FrameContentSequence": {"TemporalPositionIndex": i}} for i in (1, 2, 3)],
    ),
    "acquisitions": (
        "several-time-points",
        [{"FrameContentSequence": {"FrameAcquisitionNumber": i}} for i in (1, 2)],
    ),
}


@pytest.mark.parametrize("what", REPEATS)
def test_the_same_slices_twice_are_refused_by_what_tells_them_apart(
    make_flair_series: Make, tmp_path: Path, what: str
) -> None:
    reason, repeats = REPEATS[what]
    series = write_enhanced(make_flair_series(), tmp_path / "e", repeats=repeats)
    with pytest.raises(RepeatedStackError) as caught:
        read_volume(series)
    assert caught.value.reason == reason


def test_the_same_slices_twice_without_a_difference_are_doubled_slices(
    make_flair_series: Make, tmp_path: Path
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", repeats=[{}, {}])
    with pytest.raises(DuplicateSliceError, match="10 of 20"):
        stack_grid(series)


def test_a_deflated_object_is_read_too(make_flair_series: Make, tmp_path: Path) -> None:
    made = make_flair_series()
    write_enhanced(made, tmp_path / "e")
    image = dcmread(tmp_path / "e" / "0.dcm")
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "deflated.dcm")
    series = read_series([tmp_path / "deflated.dcm"])
    np.testing.assert_array_equal(read_volume(series).voxels, made.voxels)
