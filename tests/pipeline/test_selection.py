from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from config.settings import SelectionSettings
from dicom.errors import Outcome
from dicom.series import Study, read_study
from pipeline.selection import Decision, Selection, choose
from tests.enhanced import write_enhanced

MakeSeries = Callable[..., Any]  # tests/conftest.py, FlairSeries
SETTINGS = SelectionSettings()


def study_of(*made: Any) -> Study:  # noqa: ANN401  # tests/conftest.py, FlairSeries
    return Study(tuple(one.series for one in made))


def decide(made: Any) -> Decision:  # noqa: ANN401  # tests/conftest.py, FlairSeries
    (decision,) = choose(study_of(made), SETTINGS).decisions
    return decision


def by_uid(selection: Selection) -> dict[str, Decision]:
    return {one.series_instance_uid: one for one in selection.decisions}


# What counts as FLAIR

FLAIR = {
    "2D at 1.5 T": {},
    "the paper: GE, TR 9000, TE 120, no TI": {
        "InversionTime": None,
        "ScanningSequence": ["SE", "IR"],
    },
    "GE writes TI 0": {"InversionTime": "0", "ScanningSequence": ["SE", "IR"]},
    "GE says it in ScanOptions alone": {
        "InversionTime": None,
        "ScanningSequence": "SE",
        "ScanOptions": ["FAST_GEMS", "FLAIR_GEMS"],
    },
    "GE Cube: research mode, no IR": {
        "ScanningSequence": "RM",
        "RepetitionTime": "6500",
        "EchoTime": "130",
        "InversionTime": "1950",
    },
    "Siemens SPACE: TE 394": {
        "MRAcquisitionType": "3D",
        "SequenceVariant": ["SK", "SP", "MP"],
        "RepetitionTime": "5000",
        "EchoTime": "394",
        "InversionTime": "1800",
    },
    "Philips VISTA: TR 4800, TI 1650": {
        "ScanningSequence": "IR",
        "RepetitionTime": "4800",
        "EchoTime": "340",
        "InversionTime": "1650",
    },
    "no description at all": {"SeriesDescription": "", "ProtocolName": ""},
    "description of another kind": {"SeriesDescription": "T1 sag"},
    "no TI and no IR, but long times and a name": {
        "InversionTime": None,
        "ScanningSequence": "SE",
        "SeriesDescription": "AX dark-fluid",
    },
    "TR absent": {"RepetitionTime": None},
    "DERIVED": {"ImageType": ["DERIVED", "PRIMARY", "M", "NORM"]},
    "after contrast": {"ContrastBolusAgent": "GADOVIST"},
    "body part empty": {"BodyPartExamined": ""},
    "body part in German": {"BodyPartExamined": "SCHAEDEL"},
    "a body part nobody knows": {"BodyPartExamined": "ZNS"},
    "head and neck": {"BodyPartExamined": "HEADNECK"},
}


@pytest.mark.parametrize("overrides", FLAIR.values(), ids=FLAIR.keys())
def test_a_flair_is_selected_by_its_physics(
    make_flair_series: MakeSeries, overrides: dict[str, Any]
) -> None:
    decision = decide(make_flair_series(overrides=overrides))
    assert decision.reason == "selected", decision.explanation
    assert decision.outcome is Outcome.ANALYSED
    assert 0.5 <= decision.score <= 1.0


NOT_FLAIR: dict[str, tuple[str, dict[str, Any]]] = {
    "T2": (
        "not-flair-no-inversion",
        {"InversionTime": None, "ScanningSequence": "SE", "SeriesDescription": "t2 tse"},
    ),
    "T2 named FLAIR, TR too short for one": (
        "not-flair-no-inversion",
        {"InversionTime": None, "ScanningSequence": "SE", "RepetitionTime": "4500"},
    ),
    "PD": ("not-flair-echo-time", {"EchoTime": "15", "InversionTime": None}),
    "T1 FLAIR": (
        "not-flair-echo-time",
        {"RepetitionTime": "2500", "EchoTime": "10", "InversionTime": "860"},
    ),
    "GE T1 with TI 900": (
        "not-flair-gradient-echo",
        {
            "ScanningSequence": "GR",
            "RepetitionTime": "8.9",
            "EchoTime": "3.2",
            "InversionTime": "900",
        },
    ),
    "MPRAGE": (
        "not-flair-gradient-echo",
        {"ScanningSequence": ["GR", "IR"], "EchoTime": "3", "InversionTime": "900"},
    ),
    "STIR": ("not-flair-inversion-time", {"InversionTime": "160"}),
    "double inversion": (
        "not-flair-inversion-time",
        {"RepetitionTime": "7500", "EchoTime": "300", "InversionTime": "3000"},
    ),
    "TR 2000": ("not-flair-repetition-time", {"RepetitionTime": "2000"}),
    "EPI": ("not-flair-echo-planar", {"ScanningSequence": ["EP", "IR"]}),
    "nothing known": (
        "not-flair-no-parameters",
        {"EchoTime": None, "InversionTime": None, "SeriesDescription": ""},
    ),
    "MIP": ("projection", {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "CSA MIP"]}),
    "MIP under another name": ("projection", {"ImageType": ["ORIGINAL", "PRIMARY", "MIP_SAG"]}),
    "MinIP": ("projection", {"ImageType": ["DERIVED", "SECONDARY", "MINIP"]}),
    "MPR": ("derived-reformat", {"ImageType": ["DERIVED", "SECONDARY", "MPR", "M", "NORM"]}),
    "GE reformat": (
        "derived-reformat",
        {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]},
    ),
    "mosaic": ("mosaic", {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}),
    "ADC": ("parametric-map", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}),
    "FA": ("parametric-map", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "FA"]}),
    "CBF": ("parametric-map", {"ImageType": ["DERIVED", "PRIMARY", "RCBF"]}),
    "T2 map": ("parametric-map", {"ImageType": ["DERIVED", "PRIMARY", "T2 MAP"]}),
    "T2* map": ("parametric-map", {"ImageType": ["DERIVED", "PRIMARY", "T2_STAR MAP"]}),
    "trace": ("diffusion", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"]}),
    "diffusion by b value": ("diffusion", {"DiffusionBValue": 1000.0}),
    "diffusion by sequence name": ("diffusion", {"SequenceName": "*ep_b1000"}),
    "phase": ("not-magnitude", {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}),
    "localizer": ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
    "scout": (
        "localizer",
        {
            "ScanningSequence": "GR",
            "RepetitionTime": "15",
            "EchoTime": "5",
            "SeriesDescription": "Survey_MST",
        },
    ),
    "spine": ("body-part", {"BodyPartExamined": "CSPINE"}),
    "knee": ("body-part", {"BodyPartExamined": "KNEE"}),
    "CT": ("not-mr", {"SOPClassUID": CTImageStorage, "Modality": "CT"}),
    "MR class of another modality": ("not-mr", {"Modality": "PT"}),
    "screen save": ("secondary-capture", {"SOPClassUID": SecondaryCaptureImageStorage}),
    "SEG of another maker": ("not-image", {"SOPClassUID": SegmentationStorage, "Modality": "SEG"}),
    "our own SEG": (
        "own-result",
        {"SOPClassUID": SegmentationStorage, "Modality": "SEG", "Manufacturer": "flairnode"},
    ),
    "our own picture": (
        "own-result",
        {"SOPClassUID": SecondaryCaptureImageStorage, "Manufacturer": "flairnode"},
    ),
}


@pytest.mark.parametrize(("reason", "overrides"), NOT_FLAIR.values(), ids=NOT_FLAIR.keys())
def test_what_is_not_a_flair_is_skipped_with_its_reason(
    make_flair_series: MakeSeries, reason: str, overrides: dict[str, Any]
) -> None:
    selection = choose(study_of(make_flair_series(overrides=overrides)), SETTINGS)
    (decision,) = selection.decisions
    assert (decision.reason, decision.outcome) == (reason, Outcome.SKIPPED), decision.explanation
    assert selection.selected is None
    assert decision.score <= 0.5
    assert decision.explanation


def test_a_localizer_of_three_orientations_is_told_from_a_broken_flair(
    make_flair_series: MakeSeries,
) -> None:
    sagittal = {7: {"ImageOrientationPatient": ["0", "1", "0", "0", "0", "-1"]}}
    haste = {"InversionTime": None, "ScanningSequence": "SE", "RepetitionTime": "1100"}
    localizer = decide(make_flair_series(per_slice=sagittal, overrides=haste))
    assert (localizer.reason, localizer.outcome) == ("localizer", Outcome.SKIPPED)
    flair = decide(make_flair_series(per_slice=sagittal))
    assert (flair.reason, flair.outcome) == ("mixed-orientation", Outcome.NOT_ANALYSED)


def test_a_double_echo_is_judged_by_its_short_echo(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(per_slice={3: {"EchoTime": "20"}})
    assert decide(made).reason == "not-flair-echo-time"


# A FLAIR that is refused

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "seven slices": ("too-few-slices", {"slices": 7}),
    "two slices": ("too-few-slices", {"slices": 2}),
    "few slices and no Frame of Reference": (
        "too-few-slices",
        {"slices": 4, "overrides": {"FrameOfReferenceUID": None}},
    ),
    "missing": ("missing-slice", {"slices": 12, "drop": [5]}),
    "doubled": ("duplicate-slice", {"double": [5]}),
    "lost at the end": (
        "too-few-slices",
        {"drop": [9], "overrides": {"ImagesInAcquisition": 10}},
    ),
    "no Frame of Reference": ("missing-attribute", {"overrides": {"FrameOfReferenceUID": None}}),
    "two patients": ("inconsistent-series", {"per_slice": {2: {"PatientID": "OTHER"}}}),
    "TE absent, named FLAIR": ("missing-attribute", {"overrides": {"EchoTime": None}}),
}


@pytest.mark.parametrize(("reason", "made"), REFUSED.values(), ids=REFUSED.keys())
def test_a_flair_that_cannot_be_used_is_not_analysed(
    make_flair_series: MakeSeries, reason: str, made: dict[str, Any]
) -> None:
    selection = choose(study_of(make_flair_series(**made)), SETTINGS)
    (decision,) = selection.decisions
    assert (decision.reason, decision.outcome) == (reason, Outcome.NOT_ANALYSED)
    assert selection.selected is None


def test_an_oblique_flair_is_axial_enough(make_flair_series: MakeSeries) -> None:
    assert decide(make_flair_series(degrees_about_xyz=(30.0, 0.0, 0.0))).reason == "selected"


@pytest.mark.parametrize(
    ("plane", "degrees"), [("coronal", (90.0, 0.0, 0.0)), ("sagittal", (0.0, 90.0, 0.0))]
)
def test_a_flair_in_another_plane_is_selected_and_its_plane_told(
    make_flair_series: MakeSeries, plane: str, degrees: tuple[float, float, float]
) -> None:
    decision = decide(make_flair_series(degrees_about_xyz=degrees))
    assert decision.reason == "selected"
    assert f"; {plane}, 10 slices" in decision.explanation


def test_an_enhanced_flair_is_selected(make_flair_series: MakeSeries, tmp_path: Path) -> None:
    classic = make_flair_series()
    enhanced = choose(Study((write_enhanced(classic, tmp_path / "e"),)), SETTINGS).decisions[0]
    assert enhanced.reason == "selected"
    assert enhanced.explanation == decide(classic).explanation
    assert enhanced.score == decide(classic).score


def test_enhanced_slices_count_not_enhanced_objects(
    make_flair_series: MakeSeries, tmp_path: Path
) -> None:
    few = write_enhanced(make_flair_series(slices=7), tmp_path / "few")
    (decision,) = choose(Study((few,)), SETTINGS).decisions
    assert (decision.reason, decision.outcome) == ("too-few-slices", Outcome.NOT_ANALYSED)


def test_a_site_can_ask_for_more_slices(make_flair_series: MakeSeries) -> None:
    study = study_of(make_flair_series())
    assert choose(study, SelectionSettings(minimum_slices=10)).selected is not None
    (decision,) = choose(study, SelectionSettings(minimum_slices=11)).decisions
    assert (decision.reason, decision.outcome) == ("too-few-slices", Outcome.NOT_ANALYSED)


def test_an_enhanced_object_is_judged_by_its_functional_groups(
    make_flair_series: MakeSeries,
) -> None:
    def enhanced(echo_ms: float) -> Decision:
        made = make_flair_series(
            slices=1,
            overrides={
                "SOPClassUID": EnhancedMRImageStorage,
                "SeriesDescription": "",
                **dict.fromkeys(
                    ("EchoTime", "RepetitionTime", "InversionTime", "ScanningSequence")
                ),
                "NumberOfFrames": 1,
                "EchoPulseSequence": "SPIN",
            },
        )
        timing, echo, modifier, groups = Dataset(), Dataset(), Dataset(), Dataset()
        timing.RepetitionTime = "8000"
        echo.EffectiveEchoTime = echo_ms
        modifier.InversionRecovery, modifier.InversionTimes = "YES", [2370.0]
        groups.MRTimingAndRelatedParametersSequence = Sequence([timing])
        groups.MREchoSequence = Sequence([echo])
        groups.MRModifierSequence = Sequence([modifier])
        dataset = pydicom.dcmread(made.paths[0])
        dataset.SharedFunctionalGroupsSequence = Sequence([groups])
        dataset.save_as(made.paths[0])
        return decide(made)

    assert enhanced(120.0).reason == "too-few-slices"
    assert enhanced(120.0).outcome is Outcome.NOT_ANALYSED
    assert enhanced(10.0).reason == "not-flair-echo-time"


# One of several


def test_the_better_flair_is_chosen_and_the_other_explained(make_flair_series: MakeSeries) -> None:
    plain = make_flair_series(series_instance_uid="1.2.1")
    contrast = make_flair_series(
        series_instance_uid="1.2.2", overrides={"ContrastBolusAgent": "GADOVIST"}
    )
    for study in (study_of(plain, contrast), study_of(contrast, plain)):
        selection = choose(study, SETTINGS)
        assert selection.selected == "1.2.1"
        other = by_uid(selection)["1.2.2"]
        assert (other.reason, other.outcome) == ("other-flair-chosen", Outcome.SKIPPED)
        assert "0.90" in other.explanation
        assert "1.00" in other.explanation


@pytest.mark.parametrize(
    ("better", "worse", "words"),
    [
        ({"slices": 20}, {"slices": 10}, "covers 65 mm and the chosen one 130"),
        (
            {"spacing_mm": (3.25, 0.5, 0.75), "slices": 20},
            {"spacing_mm": (6.5, 0.5, 0.75), "slices": 10},
            "voxels are larger",
        ),
        ({"overrides": {"SeriesNumber": "9"}}, {"overrides": {"SeriesNumber": "4"}}, "later one"),
    ],
)
def test_equal_scores_are_decided_by_coverage_voxels_and_lateness(
    make_flair_series: MakeSeries, better: dict[str, Any], worse: dict[str, Any], words: str
) -> None:
    first = make_flair_series(series_instance_uid="1.2.1", **better)
    second = make_flair_series(series_instance_uid="1.2.2", **worse)
    selection = choose(study_of(first, second), SETTINGS)
    assert selection.selected == "1.2.1"
    assert words in by_uid(selection)["1.2.2"].explanation


def test_a_usable_flair_is_chosen_over_a_better_one_that_is_broken(
    make_flair_series: MakeSeries,
) -> None:
    broken = make_flair_series(series_instance_uid="1.2.1", drop=[4], slices=20)
    usable = make_flair_series(
        series_instance_uid="1.2.2", overrides={"ImageType": ["DERIVED", "PRIMARY"]}
    )
    selection = choose(study_of(broken, usable), SETTINGS)
    assert selection.selected == "1.2.2"
    assert by_uid(selection)["1.2.1"].reason == "missing-slice"


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_never_matters(
    make_flair_series: MakeSeries, tmp_path: Path, seed: int
) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"overrides": {"ContrastBolusAgent": "X"}},
        {"overrides": {"EchoTime": "10"}},
        {"drop": [3]},
        {"per_slice": {2: {"ImageType": ["DERIVED", "SECONDARY", "MIP"], "EchoTime": "30"}}},
    ]
    files: list[Path] = []
    for index, kind in enumerate(kinds):
        made = make_flair_series(
            tmp_path / str(index), series_instance_uid=f"1.2.{index}", rows=6, columns=5, **kind
        )
        files.extend(made.paths)
    usual = choose(read_study(tmp_path), SETTINGS)
    assert usual.selected == "1.2.0"
    shuffled = [files[index] for index in np.random.default_rng(seed).permutation(len(files))]
    assert choose(read_study(tmp_path, files=shuffled), SETTINGS) == usual


# Damaged files and the printed form


def test_a_flair_with_a_damaged_slice_is_refused(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    made.paths[3].write_bytes(made.paths[3].read_bytes()[:-100])
    selection = choose(read_study(made.folder), SETTINGS)
    (decision,) = selection.decisions
    assert (decision.reason, decision.outcome) == ("truncated-file", Outcome.NOT_ANALYSED)
    assert len(selection.unreadable) == 1


def test_a_series_of_damaged_files_alone_is_listed_too(
    make_flair_series: MakeSeries, tmp_path: Path
) -> None:
    make_flair_series(tmp_path / "study" / "a", series_instance_uid="1.2.1")
    lost = make_flair_series(tmp_path / "study" / "b", series_instance_uid="1.2.2")
    for path in lost.paths:
        path.write_bytes(path.read_bytes()[:-100])
    selection = choose(read_study(tmp_path / "study"), SETTINGS)
    assert selection.selected == "1.2.1"
    decision = by_uid(selection)["1.2.2"]
    assert (decision.reason, decision.outcome) == ("truncated-file", Outcome.NOT_ANALYSED)
    assert "none of its 10 objects" in decision.explanation


def test_a_damaged_file_of_unknown_series_is_mentioned(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    (made.folder / "README.txt").write_text("no image")
    (made.folder / "zero.dcm").touch()
    (decision,) = choose(read_study(made.folder), SETTINGS).decisions
    assert decision.reason == "selected"
    assert "1 damaged files" in decision.explanation


def test_the_printed_form_holds_every_series(make_flair_series: MakeSeries) -> None:
    flair = make_flair_series(series_instance_uid="1.2.1")
    other = make_flair_series(series_instance_uid="1.2.2", overrides={"EchoTime": "10"})
    (flair.folder / "notes.txt").write_text("x")
    study = read_study(flair.folder)
    printed = choose(Study((*study.series, other.series), study.unreadable), SETTINGS).as_json()
    assert printed["selected"] == "1.2.1"
    assert [(one["series_instance_uid"], one["score"]) for one in printed["series"]] == [
        ("1.2.1", 1.0),
        ("1.2.2", 0.38),
    ]
    assert [one["reason"] for one in printed["series"]] == ["selected", "not-flair-echo-time"]
    assert [one["outcome"] for one in printed["series"]] == [None, "skipped"]
    assert printed["unreadable"] == [{"file": "notes.txt", "reason": "not-dicom"}]


def test_no_explanation_names_a_patient_or_quotes_a_description(
    make_flair_series: MakeSeries,
) -> None:
    secret = {"SeriesDescription": "FLAIR Musterfrau", "PatientID": "SECRET-7"}
    for extra in ({}, {"EchoTime": "10"}, {"FrameOfReferenceUID": None}):
        made = make_flair_series(patient_name="Musterfrau^Erika", overrides={**secret, **extra})
        explanation = decide(made).explanation
        assert "Musterfrau" not in explanation
        assert "SECRET" not in explanation


def test_headers_are_not_changed(make_flair_series: MakeSeries) -> None:
    series = make_flair_series().series
    before = deepcopy(series.header)
    choose(Study((series,)), SETTINGS)
    assert series.header == before


# Real headers

SAMPLES = {
    "deflated_sc": {"secondary-capture"},
    "flair3d_compressed_j2k": {"too-few-slices"},
    "flair3d_compressed_rle": {"too-few-slices"},
    "negative_ge_signa_pd_axial_20slices": {"derived-reformat"},
    "negative_ge_t1_ti900": {"not-flair-gradient-echo"},
    "negative_hitachi_joint": {"not-flair-echo-time"},
    "negative_localizer_siemens": {"localizer"},
    "negative_siemens_mosaic": {"mosaic"},
    "negative_xa60_phoenix_sr": {"not-image"},
    "odd_fodicom": {"localizer", "secondary-capture"},
    "odd_too_few_slices": {"too-few-slices"},
    "reference_objects_dcmqi": {"not-image"},
    "siemens_enhanced_mr": {"not-flair-echo-time"},
    "siemens_trio_flair3d_4slices": {"too-few-slices"},
    "siemens_aera_study/FLAIR_t2_flair_tra": {"selected"},
    "siemens_aera_study/negative_dwi_adc": {"parametric-map"},
    "siemens_aera_study/negative_dwi_tracew": {"diffusion"},
    "siemens_aera_study/negative_mip_projection": {"projection"},
    "siemens_aera_study/negative_t1_se_sag": {"not-flair-echo-time"},
    "siemens_aera_study/negative_t2star_tra": {"not-flair-gradient-echo"},
    "siemens_aera_study/negative_tof_mip_cor": {"projection"},
}


def test_every_sample_has_its_reason(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples"
    leaves = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    leaves = {leaf for leaf in leaves if leaf not in (".", "siemens_aera_study")}
    assert leaves | {"negative_xa60_phoenix_sr"} == set(SAMPLES)
    for sample, expected in SAMPLES.items():
        decisions = choose(read_study(folder / sample), SETTINGS).decisions
        for one in decisions:
            line = f"{sample:42s} {one.outcome:13s} {one.score:4.2f} {one.reason:24s}"
            print(line, one.explanation)  # noqa: T201  # the table, with pytest -s
        assert {one.reason for one in decisions} == expected, sample


@pytest.mark.parametrize(
    ("folder", "slices", "others"),
    [
        ("dicom_samples/siemens_aera_study", 30, 6),
        ("dicom_wrapped_ms/patient01_study1", 36, 0),
        ("dicom_wrapped_ms/patient01_study2", 46, 0),
    ],
)
def test_exactly_the_flair_of_each_real_study_is_selected(
    shared_data: Path, folder: str, slices: int, others: int
) -> None:
    study = read_study(shared_data / folder)
    selection = choose(study, SETTINGS)
    (chosen,) = (one for one in study.series if one.series_instance_uid == selection.selected)
    assert len(chosen.instances) == slices
    assert "FLAIR" in chosen.header.SeriesDescription
    rest = [one for one in selection.decisions if one.series_instance_uid != selection.selected]
    assert len(rest) == others
    assert {one.outcome for one in rest} <= {Outcome.SKIPPED}
