"""What becomes of every sample: odd, real and of many vendors, with its reason.

The table is printed at the end of the run ("samples" in the terminal summary).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pydicom.data
import pytest
from listening import Node
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian

from config.settings import Peer, SelectionSettings
from dicom.errors import Outcome, StudyError
from dicom.network.scu import store
from dicom.series import read_study
from dicom.volume import read_volume
from node.ledger import SeriesState
from node.process import run_process
from pipeline.quality import gate
from pipeline.selection import choose

Record = Callable[[str, object], None]
End = tuple[str, str]
"""Outcome and reason."""

PYDICOM = Path(pydicom.data.__file__).parent
FILES = PYDICOM / "test_files"

SKIPPED, REFUSED = Outcome.SKIPPED.value, Outcome.NOT_ANALYSED.value
GOES_ON: End = (Outcome.ANALYSED.value, "")
"""Selected, and its volume passes the gate: the analysis itself is another test's."""

SAMPLES: dict[str, list[End]] = {
    "deflated_sc": [(SKIPPED, "secondary-capture")],
    # Real headers, random pixels; four slices of a 3-D FLAIR.
    "flair3d_compressed_j2k": [(REFUSED, "too-few-slices")],
    "flair3d_compressed_rle": [(REFUSED, "too-few-slices")],
    "negative_ge_signa_pd_axial_20slices": [(SKIPPED, "derived-reformat")],
    "negative_ge_t1_ti900": [(SKIPPED, "not-flair-gradient-echo")],
    "negative_hitachi_joint": [(SKIPPED, "not-flair-echo-time")],
    "negative_localizer_siemens": [(SKIPPED, "localizer")],
    "negative_siemens_mosaic": [(SKIPPED, "mosaic")],
    "negative_xa60_phoenix_sr": [(SKIPPED, "not-image")],
    "odd_fodicom": [
        (SKIPPED, "localizer"),
        (SKIPPED, "secondary-capture"),
        (SKIPPED, "secondary-capture"),
    ],
    "odd_too_few_slices": [(REFUSED, "too-few-slices")],
    "reference_objects_dcmqi": [(SKIPPED, "not-image")] * 3,
    "siemens_aera_study": [
        GOES_ON,
        (SKIPPED, "diffusion"),
        (SKIPPED, "not-flair-echo-time"),
        (SKIPPED, "not-flair-gradient-echo"),
        (SKIPPED, "parametric-map"),
        (SKIPPED, "projection"),
        (SKIPPED, "projection"),
    ],
    # Eight frames of a 3-D T1, without shared functional groups or a Frame of Reference.
    "siemens_enhanced_mr": [(SKIPPED, "not-flair-echo-time")],
    "siemens_trio_flair3d_4slices": [(REFUSED, "too-few-slices")],
}

OF_PYDICOM: dict[End, str] = {
    (SKIPPED, "not-flair-no-inversion"): """
        MR_small.dcm MR_small_RLE.dcm MR_small_bigendian.dcm MR_small_expb.dcm
        MR_small_implicit.dcm MR_small_jp2klossless.dcm MR_small_jpeg_ls_lossless.dcm
        MR_small_padded.dcm""",
    (SKIPPED, "derived-reformat"): "examples_overlay.dcm",
    (SKIPPED, "not-mr"): """
        693_J2KI.dcm CT_small.dcm ExplVR_BigEnd.dcm J2K_pixelrep_mismatch.dcm examples_jpeg2k.dcm
        examples_palette.dcm examples_rgb_color.dcm examples_ybr_color.dcm""",
    (SKIPPED, "secondary-capture"): """
        GDCMJ2K_TextGBR.dcm JPEG-lossy.dcm JPEG2000-embedded-sequence-delimiter.dcm JPEG2000.dcm
        JPGExtended.dcm SC_rgb_jpeg.dcm SC_rgb_rle.dcm SC_rgb_rle_2frame.dcm
        SC_rgb_small_odd_big_endian.dcm SC_ybr_full_422_uncompressed.dcm image_dfl.dcm""",
    (SKIPPED, "not-image"): """
        ExplVR_BigEndNoMeta.dcm ExplVR_LitEndNoMeta.dcm badVR.dcm liver_1frame.dcm
        liver_expb_1frame.dcm reportsi.dcm reportsi_with_empty_number_tags.dcm rtdose.dcm
        rtdose_expb.dcm rtdose_rle.dcm rtplan.dcm rtplan_truncated.dcm rtstruct.dcm test-SR.dcm
        waveform_ecg.dcm""",
    (REFUSED, "truncated-file"): "MR_truncated.dcm UN_sequence.dcm priv_SQ.dcm",
    (REFUSED, "missing-attribute"): """
        JPEGLSNearLossless_16.dcm SC_rgb_jls_lossy_line.dcm empty_charset_LEI.dcm
        meta_missing_tsyntax.dcm nested_priv_SQ.dcm no_meta_group_length.dcm""",
    (REFUSED, "not-dicom"): "no_meta.dcm zipMR.gz README.txt",
    (REFUSED, "empty-input"): "dicomdirtests/DICOMDIR dicomdirtests/DICOMDIR-bigEnd",
}
FOLDERS_OF_PYDICOM: dict[str, list[End]] = {
    "dicomdirtests/77654033": [(SKIPPED, "not-mr")] * 4,
    "dicomdirtests/98892001": [(SKIPPED, "not-mr")] * 2,
    "dicomdirtests/98892003": [(SKIPPED, "localizer")] * 6 + [(SKIPPED, "projection")],
    "dicomdirtests/TINY_ALPHA": [(REFUSED, "truncated-file")],
}
ROWS_OF_PYDICOM = {
    **{name: [end] for end, names in OF_PYDICOM.items() for name in names.split()},
    **FOLDERS_OF_PYDICOM,
}


def ends(place: Path) -> list[End]:
    """Of every series in a place, as `select` tells; of the selected one after its gate."""
    try:
        study = read_study(place)
    except StudyError as error:
        return [(error.outcome.value, error.reason)]
    selection = choose(study, SelectionSettings())
    found = []
    for decision in selection.decisions:
        end = (decision.outcome.value, decision.reason)
        if decision.series_instance_uid == selection.selected:
            (series,) = [s for s in study.series if s.series_instance_uid == selection.selected]
            try:
                gate(read_volume(series))
                end = GOES_ON
            except StudyError as error:
                end = (error.outcome.value, error.reason)
        found.append(end)
    return sorted(found)


def record(record_property: Record, where: str, name: str, found: list[End]) -> None:
    counted = {end: found.count(end) for end in found}
    for (outcome, reason), count in counted.items():
        times = f" x {count}" if count > 1 else ""
        record_property("sample", f"{where:10} {name:42} {outcome:13} {reason}{times}")


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_end_as_told_when_they_lie_in_a_folder(
    shared_data: Path, record_property: Record, name: str
) -> None:
    found = ends(shared_data / "dicom_samples" / name)
    record(record_property, "folder", name, found)
    assert found == sorted(SAMPLES[name])


def test_no_sample_is_left_out(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "dicom_samples").iterdir()} == set(SAMPLES)


@pytest.mark.parametrize("name", ROWS_OF_PYDICOM)
def test_files_that_ship_with_pydicom_end_as_told(record_property: Record, name: str) -> None:
    found = ends(FILES / name)
    record(record_property, "pydicom", name, found)
    assert found == sorted(ROWS_OF_PYDICOM[name])


@pytest.mark.parametrize(
    "name", [name for name, expected in SAMPLES.items() if GOES_ON not in expected]
)
def test_process_tells_the_same_of_a_sample_and_needs_no_model(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = argparse.Namespace(
        input=shared_data / "dicom_samples" / name, output=tmp_path, model="no-such-model",
        config=None, json=True, brain_mask=None, save_volumes=False,
    )  # fmt: skip
    assert run_process(arguments) == 3
    report = json.loads(capsys.readouterr().out)
    several = len(SAMPLES[name]) > 1
    expected = (SKIPPED, "no-flair") if several else SAMPLES[name][0]
    assert (report["outcome"], report["reason"]) == expected


# --- the same through a listener -----------------------------------------------------------------

SENT = (
    "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm",
    "examples_overlay.dcm", "CT_small.dcm", "examples_palette.dcm", "JPEG2000.dcm",
    "image_dfl.dcm", "liver_1frame.dcm", "rtdose.dcm", "rtplan.dcm", "rtstruct.dcm", "test-SR.dcm",
    "waveform_ecg.dcm", "dicomdirtests/98892003", "MR_truncated.dcm",
)  # fmt: skip


def sendable(path: Path, folder: Path) -> Path:
    """The file, or a copy that announces itself as what it is.

    Files that were anonymised kept the UIDs of before in their file meta information. A sender that
    announced those would be told that the dataset does not match, and rightly (0xA900).
    """
    image = dcmread(path, force=True, stop_before_pixels=True)
    uid, announced = image.SOPInstanceUID, image.file_meta.get("MediaStorageSOPInstanceUID")
    if uid == announced:
        return path
    image = dcmread(path, force=True)
    image.file_meta.MediaStorageSOPInstanceUID = uid
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    if "TransferSyntaxUID" not in image.file_meta:
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    copy = folder / f"{path.stem}.copy.dcm"
    image.save_as(copy, enforce_file_format=True)
    return copy


def sent_ends(node: Node, place: Path, scratch: Path) -> list[End]:
    """Of every series that the ledger has after everything in a place was sent to the listener."""
    files = [place] if place.is_file() else [p for p in sorted(place.rglob("*")) if p.is_file()]
    peer = Peer(name="node", ae_title="FLAIRNODE", host="127.0.0.1", port=node.server.port)
    answers = store(peer, [sendable(p, scratch) for p in files], calling_ae_title="SENDER")
    assert all(answer.accepted for answer in answers), answers
    node.close_studies()
    balance = node.ledger.oracle()
    assert balance.balanced
    assert balance.received == sum(answer.stored for answer in answers)
    found = []
    for row in node.ledger.all_series():
        queued = row.state is SeriesState.QUEUED
        found.append(GOES_ON if queued else (row.state.value, row.reason))
    return sorted(found)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_end_the_same_when_they_are_sent(
    shared_data: Path, tmp_path: Path, node: Node, record_property: Record, name: str
) -> None:
    found = sent_ends(node, shared_data / "dicom_samples" / name, tmp_path)
    record(record_property, "sent", name, found)
    assert found == sorted(SAMPLES[name])


@pytest.mark.parametrize("name", SENT)
def test_files_of_pydicom_end_the_same_when_they_are_sent(
    tmp_path: Path, node: Node, record_property: Record, name: str
) -> None:
    found = sent_ends(node, FILES / name, tmp_path)
    record(record_property, "sent", name, found)
    assert found == sorted(ROWS_OF_PYDICOM[name])
