from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage
from skimage.color import lab2rgb

from dicom.checks import printed_strings
from dicom.errors import InconsistentSeriesError, ResultCheckError
from dicom.identity import is_own_result
from dicom.part10 import part10_bytes, read_part10
from dicom.reference import DocumentReference
from dicom.series import Series
from dicom.volume import read_volume
from pipeline.appearance import colour_rgb
from pipeline.brain import BrainMask
from pipeline.flow import Analysis
from pipeline.quality import Flag, Quality
from pipeline.regions import Anatomy, NotPlaced
from pipeline.results import (
    COLOURS_CIELAB,
    RESEARCH_BANNER,
    ResultObject,
    build_results,
    check_results,
    result_settings_digest,
)
from tests.pipeline.analysed import (
    SETTINGS,
    analysed,
    analysis_of,
    anatomy_of_three,
    no_lesions,
    pack,
    three_lesions,
)

Make = Callable[..., Any]

ALL_KINDS = ("key-image", "pdf", "probability")


def results_of(series: Series, **changes: Any) -> tuple[ResultObject, ...]:  # noqa: ANN401
    labels = changes.pop("labels", three_lesions())
    quality = changes.pop("quality", None)
    analysis = analysed(series, labels, quality) if quality else analysed(series, labels)
    settings = changes.pop("settings", SETTINGS)
    predecessor = changes.pop("predecessor", None)
    kinds = changes.pop("kinds", ())  # Segmentation and report are always there
    return build_results(
        series, analysis, changes.pop("pack", pack()), settings, kinds, predecessor
    )


_stored: list[tuple[Series, Analysis, tuple[ResultObject, ...]]] = []


def stored(make: Make) -> tuple[Series, Analysis, list[ResultObject]]:
    """A whole result, made once for all that only look at it."""
    if not _stored:
        series = make().series
        analysis = analysed(series, three_lesions())
        _stored.append((series, analysis, build_results(series, analysis, pack(), SETTINGS)))
    series, analysis, results = _stored[0]
    return series, analysis, list(results)


def summary(result: ResultObject) -> list[str]:
    container = next(
        item
        for item in result.dataset.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeValue == "121111"
    )
    return [str(item.TextValue) for item in container.ContentSequence]


def uids(results: tuple[ResultObject, ...]) -> list[str]:
    found = []
    for result in results:
        found += [result.sop_instance_uid, str(result.dataset.SeriesInstanceUID)]
        segments = result.dataset.get("SegmentSequence", ())
        found += [str(segment.TrackingUID) for segment in segments]
    return found


# --- which objects -------------------------------------------------------------------------------


def test_lesions_give_a_segmentation_and_then_a_report_that_refers_to_it(
    make_flair_series: Make,
) -> None:
    results = results_of(make_flair_series().series)
    assert [result.kind for result in results] == ["seg", "sr"]
    assert [result.dataset.Modality for result in results] == ["SEG", "SR"]
    assert [result.dataset.SeriesNumber for result in results] == [9001, 9002]
    assert [r.sop_instance_uid for r in results] == [r.dataset.SOPInstanceUID for r in results]


def test_no_lesion_gives_a_report_alone_that_says_so(make_flair_series: Make) -> None:
    (report,) = results_of(make_flair_series().series, labels=no_lesions())
    assert report.kind == "sr"
    assert "No lesions found by the software: 0 lesions, 0 ml. The series was analysed." in summary(
        report
    )
    values = [e.value for e in report.dataset.iterall() if e.keyword == "CodeValue"]
    assert "111241" in values  # All algorithms succeeded; without findings
    assert "111242" not in values


def test_pictures_and_document_follow_by_default_and_a_probability_map_on_request(
    make_flair_series: Make,
) -> None:
    series = make_flair_series().series
    analysis = analysed(series, three_lesions())
    plain = build_results(series, analysis, pack(), SETTINGS)
    # Overview, largest, lowest probability.
    kinds = ["seg", "sr", "key-image", "key-image", "key-image", "pdf"]
    assert [result.kind for result in plain] == kinds
    assert [r.dataset.InstanceNumber for r in plain if r.kind == "key-image"] == [1, 2, 3]
    assert [r.dataset.SeriesNumber for r in plain] == [9001, 9002, 9003, 9003, 9003, 9004]
    everything = build_results(series, analysis, pack(), SETTINGS, ALL_KINDS)
    # What else is made changes no object.
    assert [r.content for r in everything[:-1]] == [r.content for r in plain]
    assert everything[-1].kind == "probability"
    assert everything[-1].dataset.SeriesNumber == 9005


def test_no_lesion_gives_one_picture_and_a_document_that_say_so(make_flair_series: Make) -> None:
    results = results_of(make_flair_series().series, labels=no_lesions(), kinds=ALL_KINDS)
    assert [result.kind for result in results] == ["sr", "key-image", "pdf", "probability"]
    said = "No lesions found by the software: 0 lesions, 0 ml. The series was analysed."
    assert results[1].dataset.ImageComments == said
    assert said in printed_strings(results[2].dataset.EncapsulatedDocument)


def test_the_document_prints_the_findings_and_the_identity_that_the_archive_knows(
    make_flair_series: Make,
) -> None:
    document = results_of(make_flair_series().series, kinds=["pdf"])[-1].dataset
    printed = printed_strings(document.EncapsulatedDocument)
    joined = " ".join(printed)
    # 230 voxels of 2.4375 mm3; the third lesion is one pixel of .75 mm.
    assert "0.56 ml total volume 3 lesions 2 of them at least 3 mm long" in joined
    assert "1 not assessed 0.512 7.2 3 to 5 0.88" in joined
    for said in ("Phantom, Flair", "TEST-1", "1970-01-01", "2024-01-02", "ACC001", "MR head"):
        assert said in printed
    assert "4: t2 flair tra" in printed
    assert "Quality check: REVIEW" in joined
    assert "5a" * 32 in printed
    assert "Useless." in printed


def test_no_name_and_no_identifier_is_burned_into_a_picture(make_flair_series: Make) -> None:
    """The pixels are those of the same images of another patient."""
    one = results_of(make_flair_series().series, kinds=["key-image"])
    other = results_of(
        make_flair_series(
            patient_name="Somebody^Else", patient_id="X", overrides={"AccessionNumber": "B"}
        ).series,
        kinds=["key-image"],
    )
    for first, second in zip(one[2:], other[2:], strict=True):
        assert first.dataset.PixelData == second.dataset.PixelData
        assert first.sop_instance_uid != second.sop_instance_uid


def test_a_failed_quality_gives_no_result(make_flair_series: Make) -> None:
    fail = Quality((Flag("noise", "Noise.", "fail"),))
    with pytest.raises(ResultCheckError, match="fail"):
        results_of(make_flair_series().series, quality=fail)


def test_our_results_are_recognised_as_ours(make_flair_series: Make) -> None:
    assert all(is_own_result(result.dataset) for result in results_of(make_flair_series().series))


# --- the same input, the same result -------------------------------------------------------------


def test_the_same_series_in_any_order_gives_the_same_bytes(make_flair_series: Make) -> None:
    series = make_flair_series().series
    turned = replace(series, instances=tuple(reversed(series.instances)))
    first, again = results_of(series, kinds=ALL_KINDS), results_of(turned, kinds=ALL_KINDS)
    assert [r.content for r in first] == [r.content for r in again]


def test_all_uids_of_a_result_differ_and_are_short(make_flair_series: Make) -> None:
    results = results_of(make_flair_series().series, kinds=ALL_KINDS)
    found = [result.sop_instance_uid for result in results]
    found += sorted({str(result.dataset.SeriesInstanceUID) for result in results})
    found += [str(one.TrackingUID) for one in results[0].dataset.SegmentSequence]
    assert len(set(found)) == len(found) == 7 + 5 + 3
    assert all(uid.startswith("2.25.") and len(uid) <= 44 for uid in found)


SMALL: dict[str, Any] = {"slices": 4, "rows": 8, "columns": 8}
CHANGES: dict[str, Callable[[Make, Series], tuple[ResultObject, ...]]] = {
    "pixels": lambda make, _: small(make(**SMALL, voxels=np.ones((4, 8, 8), np.uint16)).series),
    "name": lambda make, _: small(make(**SMALL, patient_name="Another^Name").series),
    "accession": lambda make, _: small(make(**SMALL, overrides={"AccessionNumber": "B"}).series),
    "instances": lambda make, _: small(make(**SMALL, series_instance_uid="1.2.3.4").series),
    "model": lambda _, series: small(series, pack=replace(pack(), digest="6b" * 32)),
    "settings": lambda _, series: small(series, settings={**SETTINGS, "mirroring_axes": []}),
}


def small(series: Series, **changes: Any) -> tuple[ResultObject, ...]:  # noqa: ANN401
    labels = no_lesions((4, 8, 8))
    labels[1, 2, 3] = 1
    return results_of(series, labels=labels, **changes)


@pytest.mark.parametrize("what", CHANGES)
def test_every_uid_follows_pixels_identity_instances_model_and_settings(
    make_flair_series: Make, what: str
) -> None:
    series = make_flair_series(**SMALL).series
    assert not set(uids(small(series))) & set(uids(CHANGES[what](make_flair_series, series)))


def test_a_report_that_replaces_another_names_it_and_is_another_report(
    make_flair_series: Make,
) -> None:
    series = make_flair_series(**SMALL).series
    study = series.study_instance_uid
    earlier = DocumentReference(study, "1.2.3", Comprehensive3DSRStorage, "1.2.3.4")
    first = small(series)
    second = small(series, predecessor=earlier)
    third = small(series, predecessor=replace(earlier, sop_instance_uid="1.2.3.5"))
    assert "PredecessorDocumentsSequence" not in first[1].dataset
    (named,) = second[1].dataset.PredecessorDocumentsSequence
    assert named.StudyInstanceUID == study
    assert named.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    (document,) = named.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert document.ReferencedSOPInstanceUID == "1.2.3.4"
    assert document.ReferencedSOPClassUID == Comprehensive3DSRStorage
    assert len({result[1].sop_instance_uid for result in (first, second, third)}) == 3
    assert first[0].content == second[0].content, "the Segmentation replaces nothing by reference"


def test_a_report_that_names_itself_or_nothing_as_its_predecessor_is_not_sent(
    make_flair_series: Make,
) -> None:
    series = make_flair_series(**SMALL).series
    elsewhere = DocumentReference("1.9", "1.2.3", Comprehensive3DSRStorage, "1.2.3.4")
    with pytest.raises(ResultCheckError, match="of another study"):
        small(series, predecessor=elsewhere)


def test_another_revision_of_the_code_gives_other_uids(
    make_flair_series: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = make_flair_series(**SMALL).series
    plain = uids(small(series))
    monkeypatch.setattr("pipeline.results.RESULT_REVISION", "next")
    assert not set(plain) & set(uids(small(series)))


def test_an_edited_study_description_gives_no_second_result(make_flair_series: Make) -> None:
    plain = uids(results_of(make_flair_series().series))
    edited = make_flair_series(overrides={"StudyDescription": "edited at the PACS"})
    assert uids(results_of(edited.series)) == plain


def test_a_supplied_brain_mask_is_an_input_like_the_images(make_flair_series: Make) -> None:
    brain = analysed(make_flair_series().series, no_lesions()).brain
    supplied = replace(brain, method="supplied")
    other = replace(supplied, mask=np.roll(brain.mask, 1) & (np.arange(36) > 3))
    digests = {result_settings_digest(SETTINGS, mask) for mask in (brain, supplied, other)}
    assert len(digests) == 3


def test_results_are_dated_by_their_images_not_by_the_clock(make_flair_series: Make) -> None:
    made = make_flair_series(overrides={"AcquisitionDate": "20240103", "AcquisitionTime": "235959"})
    for result in results_of(made.series):
        assert (result.dataset.ContentDate, result.dataset.ContentTime) == ("20240103", "235959")


# --- what a reader is told -----------------------------------------------------------------------


def test_the_summary_says_first_what_it_is_what_was_found_and_how_good(
    make_flair_series: Make,
) -> None:
    said = summary(results_of(make_flair_series().series)[-1])
    assert said[0] == RESEARCH_BANNER == "RESEARCH - NOT FOR CLINICAL USE"
    # 230 voxels of 2.4375 mm3; the third lesion is one pixel of .75 mm.
    assert said[1] == (
        "3 lesions, total volume 0.56 ml; 2 of 3 at least 3 mm long in the plane of the slices."
    )
    assert said[2].startswith("Lesion 1: 0.512 ml, 7.2 mm long, images 3 to 5, largest on 3;")
    assert "Quality check: REVIEW." in said
    assert "Quality, review: The brain is cut off at the last slice." in said


def test_the_summary_says_what_was_not_assessed_and_what_a_lesion_is(
    make_flair_series: Make,
) -> None:
    said = " ".join(summary(results_of(make_flair_series().series)[-1]))
    for words in (
        "spinal cord, optic nerve",
        "no diagnosis",
        "26-connectivity",
        "above 0.5",
        "at least 5 mm3",
        "Left out: 2 smaller than 5 mm3.",
        "Model: tiny 1.0, 5 members, status research, SHA-256 5a5a",
        "Brain mask: surface-refine 1",
        "10 slices 6.50 mm apart, 48 x 36 pixels of 0.50 x 0.75 mm",
    ):
        assert words in said


def with_regions(make: Make) -> tuple[Series, Analysis]:
    series = make().series
    volume = read_volume(series)
    return series, analysis_of(volume, three_lesions(), anatomy=anatomy_of_three(volume))


def test_regions_are_counted_in_words_and_are_no_criterion(make_flair_series: Make) -> None:
    series, analysis = with_regions(make_flair_series)
    results = build_results(series, analysis, pack(), SETTINGS, ALL_KINDS)
    said = summary(results[1])
    assert said[2] == (
        "Regions with lesions on this series (approximate): periventricular 1, juxtacortical 1,"
        " infratentorial 1, deep white matter 0; spinal cord and optic nerve not assessed."
    )
    assert said[3].endswith("mean probability 0.88; periventricular.")
    assert said[5].endswith("infratentorial.")
    words = " ".join(said)
    assert "Regions are approximate, by an average brain laid over this one" in words
    assert "Not assessed: spinal cord, optic nerve, contrast" in words
    assert "Not assessed: regions" not in words
    assert "dissemination" not in words.lower()
    assert "mcdonald" not in words.lower()
    (document,) = (result.dataset for result in results if result.kind == "pdf")
    printed = printed_strings(document.EncapsulatedDocument)
    assert "Regions (approximate)" in printed
    assert {"deep white matter", "0.000"} <= set(printed)


def test_regions_are_coded_with_the_nearest_site_and_our_own_code(make_flair_series: Make) -> None:
    series, analysis = with_regions(make_flair_series)
    report = build_results(series, analysis, pack(), SETTINGS)[1].dataset
    coded = [
        [
            child.ConceptCodeSequence[0].CodeValue
            for child in group.ContentSequence
            if child.ValueType == "CODE" and child.ConceptNameCodeSequence[0].CodeValue in names
        ]
        for group in report.ContentSequence[-1].ContentSequence
        for names in [("363698007", "REGION")]
    ]
    # Totals, then the volumetric and the outline group of each; the totals have the brain.
    assert coded == [
        ["12738006"],
        ["68523003", "PERIVENTRICULAR"], [],
        ["372073000", "JUXTACORTICAL"], [],
        ["12738006", "INFRATENTORIAL"], [],
    ]  # fmt: skip
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99FLAIRNODE"


def test_a_template_that_does_not_fit_leaves_every_region_not_assessed(
    make_flair_series: Make,
) -> None:
    series = make_flair_series().series
    volume = read_volume(series)
    failed = NotPlaced("template and brain mask overlap by Dice 0.42; 0.92 is the least")
    analysis = analysis_of(volume, three_lesions(), anatomy=failed)
    report = build_results(series, analysis, pack(), SETTINGS)[1]
    said = " ".join(summary(report))
    assert "Not assessed: regions of the lesions (periventricular, juxtacortical" in said
    assert "Regions with lesions" not in said
    assert "CodingSchemeIdentificationSequence" not in report.dataset
    assert {lesion.region for lesion in analysis.findings.lesions} == {"not-assessed"}


def test_another_anatomy_than_the_findings_were_named_by_gives_no_result(
    make_flair_series: Make,
) -> None:
    series, analysis = with_regions(make_flair_series)
    assert isinstance(analysis.anatomy, Anatomy)
    moved = replace(analysis.anatomy, cortex=np.zeros_like(analysis.anatomy.cortex))
    with pytest.raises(ResultCheckError, match="not those of the Segmentation"):
        build_results(series, replace(analysis, anatomy=moved), pack(), SETTINGS)


def test_brain_method_version_parameters_and_weights_stand_in_both_objects(
    make_flair_series: Make,
) -> None:
    series = make_flair_series(**SMALL).series
    labels = no_lesions((4, 8, 8))
    labels[1, 2, 3] = 1
    plain = analysed(series, labels)
    weights = "c3" * 32
    parameters = {"device": "cpu", "mirroring": 0.0, "weights_sha256": weights}
    brain = BrainMask(plain.brain.mask, plain.brain.grid, "hd-bet", "2.0.1", parameters)
    results = build_results(series, replace(plain, brain=brain), pack(), SETTINGS)
    seg, report = (next(one for one in results if one.kind == kind) for kind in ("seg", "sr"))
    stated = f"device=cpu,mirroring=0,weights_sha256={weights}"
    (identification,) = seg.dataset.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert "brain_mask=hd-bet 2.0.1" in identification.AlgorithmParameters
    assert f"brain_parameters={stated}" in identification.AlgorithmParameters
    elements = list(report.dataset.iterall())
    texts = [str(element.value) for element in elements if element.keyword == "TextValue"]
    assert any(stated in text and "hd-bet 2.0.1" in text for text in texts)
    assert any("Brain mask: hd-bet 2.0.1" in text for text in texts)
    assert "brain hd-bet 2.0.1" in seg.dataset.SoftwareVersions
    assert not set(uids(results)) & set(uids(build_results(series, plain, pack(), SETTINGS)))


def test_a_supplied_brain_mask_is_named_as_such(make_flair_series: Make) -> None:
    series = make_flair_series().series
    analysis = analysed(series, three_lesions())
    supplied = BrainMask(analysis.brain.mask, analysis.brain.grid, "supplied", "")
    report = build_results(series, replace(analysis, brain=supplied), pack(), SETTINGS, ())[-1]
    assert any(words.startswith("Brain mask: supplied") for words in summary(report))


def test_only_a_research_model_has_the_banner_and_has_it_in_every_object(
    make_flair_series: Make,
) -> None:
    series = make_flair_series().series
    research = results_of(series, kinds=ALL_KINDS)
    clinical = results_of(series, pack=pack("clinical"), kinds=ALL_KINDS)
    for result in research:
        assert RESEARCH_BANNER in result.dataset.SeriesDescription
    assert RESEARCH_BANNER in research[-1].dataset.ContentDescription
    assert RESEARCH_BANNER in printed_strings(research[-2].dataset.EncapsulatedDocument)
    assert RESEARCH_BANNER in research[0].dataset.ContentDescription
    assert research[0].dataset.ContentLabel == "RESEARCH_LESIONS"
    for result in clinical:
        assert RESEARCH_BANNER.encode() not in result.content
    assert all(result.dataset.SeriesDescription for result in clinical)


def test_long_texts_stay_within_the_lengths_of_their_attributes(make_flair_series: Make) -> None:
    long = pack(name="m" * 64, version="1" * 32)
    results = results_of(make_flair_series().series, pack=long, kinds=ALL_KINDS)
    limits = {"LO": 64, "SH": 16, "CS": 16, "ST": 1024}
    elements = [e for r in results if r.kind != "sr" for e in r.dataset.iterall()]
    for element in elements:
        if element.VR in limits and element.value:
            several = element.value if element.VM > 1 else [element.value]
            assert all(len(str(one)) <= limits[element.VR] for one in several), element.keyword


def test_many_lesions_have_a_line_each_up_to_twenty(make_flair_series: Make) -> None:
    labels = no_lesions()
    for number in range(24):
        labels[1, 2 * number, :5] = number + 1
    said = summary(results_of(make_flair_series().series, labels=labels)[-1])
    assert sum(words.startswith("Lesion ") for words in said) == 20
    assert "4 more, all smaller: see the measurements below." in said


def test_pictures_have_the_colours_that_the_segmentation_recommends(
    make_flair_series: Make,
) -> None:
    for segment in results_of(make_flair_series().series)[0].dataset.SegmentSequence:
        lightness, a, b = segment.RecommendedDisplayCIELabValue  # PS3.3 C.10.7.1.1
        lab = np.array([lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128])
        recommended = 255 * lab2rgb(lab)
        assert np.abs(recommended - colour_rgb(segment.SegmentNumber)).max() < 1


def test_more_lesions_than_colours_start_the_colours_again(make_flair_series: Make) -> None:
    labels = no_lesions()
    for number in range(12):
        labels[1, 2 * number, :5] = number + 1
    seg = results_of(make_flair_series().series, labels=labels)[0].dataset
    colours = [tuple(s.RecommendedDisplayCIELabValue) for s in seg.SegmentSequence]
    assert len(set(colours)) == len(COLOURS_CIELAB) == 10
    assert colours[10] == colours[0]


# --- nothing that disagrees leaves ---------------------------------------------------------------


def test_images_of_two_patients_give_no_result(make_flair_series: Make) -> None:
    series = make_flair_series().series
    analysis = analysed(series, three_lesions())
    header = series.instances[3].header.copy()
    header.PatientName = "Another^Name"
    mixed = list(series.instances)
    mixed[3] = replace(mixed[3], header=header)
    with pytest.raises(InconsistentSeriesError, match="2 identities"):
        build_results(replace(series, instances=tuple(mixed)), analysis, pack(), SETTINGS)


def test_findings_that_are_not_those_of_the_mask_give_no_result(make_flair_series: Make) -> None:
    series = make_flair_series().series
    analysis = analysed(series, three_lesions())
    first, *others = analysis.findings.lesions
    larger = replace(first, volume_ml=first.volume_ml * 1.25)
    wrong = replace(analysis.findings, lesions=(larger, *others))
    with pytest.raises(ResultCheckError):
        build_results(series, replace(analysis, findings=wrong), pack(), SETTINGS)


def test_a_volume_of_other_images_gives_no_result(make_flair_series: Make) -> None:
    series = make_flair_series().series
    other = make_flair_series(series_instance_uid="1.2.3.4").series
    with pytest.raises(ResultCheckError, match="not the same"):
        build_results(series, analysed(other, three_lesions()), pack(), SETTINGS)


def _tampered(result: ResultObject, change: Callable[[Dataset], None]) -> ResultObject:
    dataset = read_part10(result.content)
    change(dataset)
    return replace(result, content=part10_bytes(dataset))


def _without_banner(dataset: Dataset) -> None:
    dataset.SeriesDescription = "FLAIR lesions"


def _other_patient(dataset: Dataset) -> None:
    dataset.PatientID = "TEST-2"


def _without_strip(dataset: Dataset) -> None:
    dataset.PixelData = bytes(1024 * 44 * 3) + dataset.PixelData[1024 * 44 * 3 :]


def _another_document(dataset: Dataset) -> None:
    dataset.EncapsulatedDocument = dataset.EncapsulatedDocument.replace(b"stream", b"strxxm")


@pytest.mark.parametrize(("kind", "change"), [(2, _without_strip), (5, _another_document)])
def test_a_stored_picture_or_document_that_changed_is_not_sent(
    make_flair_series: Make, kind: int, change: Callable[[Dataset], None]
) -> None:
    series, analysis, results = stored(make_flair_series)
    results[kind] = _tampered(results[kind], change)
    with pytest.raises(ResultCheckError):
        check_results(results, series, analysis, pack(), SETTINGS)


@pytest.mark.parametrize("change", [_without_banner, _other_patient])
@pytest.mark.parametrize("index", [0, 1, 2, 5])
def test_stored_results_are_checked_again_before_they_are_sent(
    make_flair_series: Make, change: Callable[[Dataset], None], index: int
) -> None:
    series, analysis, results = stored(make_flair_series)
    results[index] = _tampered(results[index], change)
    with pytest.raises(ResultCheckError):
        check_results(results, series, analysis, pack(), SETTINGS)


def test_a_missing_segmentation_is_noticed(make_flair_series: Make) -> None:
    series, analysis, results = stored(make_flair_series)
    check_results(results, series, analysis, pack(), SETTINGS)
    with pytest.raises(ResultCheckError, match="exactly when"):
        check_results(results[1:], series, analysis, pack(), SETTINGS)


def test_a_result_of_the_volume_alone_needs_its_images(make_flair_series: Make) -> None:
    series = make_flair_series().series
    volume = replace(analysed(series, no_lesions()).volume, sop_instance_uids=(), frame_numbers=())
    with pytest.raises(ResultCheckError):
        build_results(series, analysis_of(volume, no_lesions()), pack(), SETTINGS)
