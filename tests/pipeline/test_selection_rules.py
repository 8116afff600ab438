"""FLAIR of many makers, a site's own rules, and two FLAIR in one study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage

from config.selection import FACTS, SelectionSettings, rules_in_force
from dicom.errors import Outcome
from dicom.series import Study
from pipeline.header_facts import Facts, facts_of, with_geometry
from pipeline.selection import Decision, Selection, choose

MakeSeries = Callable[..., Any]  # tests/conftest.py, FlairSeries
USUAL = SelectionSettings()


def choice(*made: Any, settings: SelectionSettings = USUAL) -> Selection:  # noqa: ANN401
    return choose(Study(tuple(one.series for one in made)), settings)


def decide(made: Any, settings: SelectionSettings = USUAL) -> Decision:  # noqa: ANN401
    (decision,) = choice(made, settings=settings).decisions
    return decision


def of(selection: Selection, uid: str) -> Decision:
    return next(one for one in selection.decisions if one.series_instance_uid == uid)


def site(**given: Any) -> SelectionSettings:  # noqa: ANN401
    return SelectionSettings.model_validate(given)


# Headers as vendors write them ----------------------------------------------------------------
#
# WRITTEN, NOT MEASURED: put together from public conformance statements, publications and common
# knowledge of each maker's habits. Real headers are in test_selection.py (Siemens, GE T1, Hitachi).

GE = {"Manufacturer": "GE MEDICAL SYSTEMS", "ProtocolName": "MS BRAIN W WO"}
SIEMENS = {"Manufacturer": "SIEMENS", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]}
PHILIPS = {
    "Manufacturer": "Philips Medical Systems",
    "ImageType": ["ORIGINAL", "PRIMARY", "M_IR", "M", "IR"],
}
CANON = {"Manufacturer": "TOSHIBA", "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"]}
UIH = {"Manufacturer": "UIH", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}
HYPERFINE = {
    "Manufacturer": "Hyperfine",
    "ManufacturerModelName": "Swoop",
    "MagneticFieldStrength": "0.064",
    "ScanningSequence": "SE",
    "SequenceVariant": "SK",
    "MRAcquisitionType": "3D",
    "ImageType": ["ORIGINAL", "PRIMARY"],
}


def times(repetition: float, echo: float, inversion: float | None) -> dict[str, Any]:
    return {
        "RepetitionTime": str(repetition),
        "EchoTime": str(echo),
        "InversionTime": None if inversion is None else str(inversion),
    }


FLAIR: dict[str, dict[str, Any]] = {
    "GE FSE-IR without TI": {
        **GE,
        **times(9002, 122.6, None),
        "SeriesDescription": "Ax T2 FLAIR",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": ["SK", "OSP", "SP"],
        "ScanOptions": ["FAST_GEMS", "FLOW_COMP_GEMS", "FILTERED_GEMS"],
    },
    "GE PROPELLER": {
        **GE,
        **times(8500, 139, 2250),
        "SeriesDescription": "Ax T2 FLAIR PROPELLER",
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": ["PROP_GEMS", "FAST_GEMS", "FLAIR_GEMS"],
    },
    "GE CUBE": {
        **GE,
        **times(6000, 118, 1848),
        "SeriesDescription": "Sag CUBE T2 FLAIR",
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": ["CUBE_GEMS", "FAT_SAT_GEMS"],
        "MRAcquisitionType": "3D",
    },
    "Siemens TIRM": {
        **SIEMENS,
        **times(9000, 86, 2500),
        "SeriesDescription": "t2_tirm_tra_dark-fluid",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": ["SK", "SP", "MP", "OSP"],
        "SequenceName": "*tir2d1_16fs",
    },
    "Siemens SPACE": {
        **SIEMENS,
        **times(5000, 387, 1800),
        "SeriesDescription": "t2_space_dark-fluid_sag_p2_iso",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": ["SK", "SP", "MP"],
        "SequenceName": "*spcir_278ns",
        "MRAcquisitionType": "3D",
    },
    "Philips FLAIR long TR": {
        **PHILIPS,
        **times(11000, 125, 2800),
        "SeriesDescription": "FLAIR_longTR",
        "ScanningSequence": "IR",
        "SequenceVariant": "SK",
    },
    "Philips VISTA": {
        **PHILIPS,
        **times(4800, 300, 1650),
        "SeriesDescription": "3D_Brain_VIEW_FLAIR",
        "ScanningSequence": "IR",
        "SequenceVariant": "SK",
        "MRAcquisitionType": "3D",
    },
    "Philips MultiVane": {
        **PHILIPS,
        **times(11000, 120, 2800),
        "SeriesDescription": "FLAIR MV XD",
        "ScanningSequence": "IR",
        "SequenceVariant": "SK",
        "ScanOptions": "FS",
    },
    "Canon": {
        **CANON,
        **times(10000, 105, 2700),
        "SeriesDescription": "FLAIR AX",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": "SK",
        "SequenceName": "FSE+5_FLAIR",
    },
    "Canon, inversion in the sequence name only": {
        **CANON,
        **times(8000, 100, None),
        "SeriesDescription": "",
        "ProtocolName": "",
        "ScanningSequence": "SE",
        "SequenceName": "FLAIR_FSE",
    },
    "United Imaging 2D": {
        **UIH,
        **times(8000, 118, 2300),
        "SeriesDescription": "t2_fse_flair_tra",
        "ScanningSequence": ["SE", "IR"],
        "SequenceVariant": "SK",
        "SequenceName": "fse_mx_ir",
    },
    "United Imaging MATRIX 3D": {
        **UIH,
        **times(5500, 403, 1750),
        "SeriesDescription": "t2_mx3d_flair_sag",
        "ScanningSequence": ["SE", "IR"],
        "MRAcquisitionType": "3D",
    },
    "Hyperfine, TR 4000": {
        **HYPERFINE,
        **times(4000, 166, 1400),
        "SeriesDescription": "FLAIR (Axi)",
    },
    "Hyperfine, TR 3500": {**HYPERFINE, **times(3500, 170, 1300), "SeriesDescription": "FLAIR"},
    "Hyperfine without TI": {
        **HYPERFINE,
        **times(4000, 185, None),
        "SeriesDescription": "FLAIR (Fast)",
    },
}


@pytest.mark.parametrize("overrides", FLAIR.values(), ids=FLAIR.keys())
def test_flair_headers_of_every_maker_are_selected(
    make_flair_series: MakeSeries, overrides: dict[str, Any]
) -> None:
    decision = decide(make_flair_series(overrides=overrides))
    assert decision.reason == "selected", decision.explanation
    assert decision.rule == "choice"


NOT_FLAIR: dict[str, tuple[str, dict[str, Any]]] = {
    "GE BRAVO, TI 900 for no reason a FLAIR has": (
        "gradient-echo",
        {**GE, **times(8.2, 3.2, 900), "ScanningSequence": "GR", "MRAcquisitionType": "3D"},
    ),
    "GE T1 FLAIR": (
        "short-echo-time",
        {
            **GE,
            **times(2500, 9, 860),
            "SeriesDescription": "Sag T1 FLAIR",
            "ScanningSequence": ["SE", "IR"],
        },
    ),
    "GE PROPELLER T2": (
        "no-inversion",
        {
            **GE,
            **times(5200, 102, None),
            "SeriesDescription": "Ax T2 PROPELLER",
            "ScanningSequence": "RM",
            "ScanOptions": ["PROP_GEMS"],
        },
    ),
    "Siemens MPRAGE": (
        "gradient-echo",
        {**SIEMENS, **times(2300, 2.3, 900), "ScanningSequence": ["GR", "IR"]},
    ),
    "Siemens STIR of the neck": (
        "inversion-time",
        {**SIEMENS, **times(4500, 70, 220), "ScanningSequence": ["SE", "IR"]},
    ),
    "Philips DIR": (
        "inversion-time",
        {**PHILIPS, **times(5500, 290, 2550), "ScanningSequence": "IR"},
    ),
    "Canon T2": (
        "no-inversion",
        {**CANON, **times(4500, 105, None), "SeriesDescription": "T2 AX", "ScanningSequence": "SE"},
    ),
    "United Imaging DWI": (
        "diffusion-b-value",
        {**UIH, **times(5000, 80, None), "ScanningSequence": "EP", "DiffusionBValue": 1000.0},
    ),
    "Hyperfine T2": (
        "short-repetition-time",
        {**HYPERFINE, **times(2000, 209, None), "SeriesDescription": "T2 (Axi)"},
    ),
    "Hyperfine T1": (
        "short-echo-time",
        {**HYPERFINE, **times(1500, 6, 300), "SeriesDescription": "T1 (Axi)"},
    ),
    "the times of a low-field FLAIR at 1.5 T": (
        "short-repetition-time",
        {**SIEMENS, **times(3500, 170, 1300), "MagneticFieldStrength": "1.5"},
    ),
}


@pytest.mark.parametrize(("rule", "overrides"), NOT_FLAIR.values(), ids=NOT_FLAIR.keys())
def test_other_headers_of_every_maker_are_refused_by_their_rule(
    make_flair_series: MakeSeries, rule: str, overrides: dict[str, Any]
) -> None:
    decision = decide(make_flair_series(overrides=overrides))
    assert (decision.rule, decision.outcome) == (rule, Outcome.SKIPPED), decision.explanation
    assert decision.change


def enhanced(made: Any, *, pulse: str, echo: float, **top: str) -> Facts:  # noqa: ANN401
    """The facts of an Enhanced object: times in functional groups, nothing at the top level."""
    timing, echoes, modifier, groups = Dataset(), Dataset(), Dataset(), Dataset()
    timing.RepetitionTime = "5000"
    echoes.EffectiveEchoTime = echo
    modifier.InversionRecovery, modifier.InversionTimes = "YES", [1800.0]
    groups.MRTimingAndRelatedParametersSequence = Sequence([timing])
    groups.MREchoSequence = Sequence([echoes])
    groups.MRModifierSequence = Sequence([modifier])
    dataset = pydicom.dcmread(made.paths[0])
    for keyword, value in {"EchoPulseSequence": pulse, **top}.items():
        setattr(dataset, keyword, value)
    dataset.SharedFunctionalGroupsSequence = Sequence([groups])
    dataset.save_as(made.paths[0])
    return facts_of(made.series, rules_in_force(USUAL))


@pytest.mark.parametrize(
    "top",
    [
        {"Manufacturer": "Siemens Healthineers", "PulseSequenceName": "*spcir_278ns"},  # XA
        {"Manufacturer": "Philips", "PulseSequenceName": "TSE", "AcquisitionContrast": "UNKNOWN"},
        {"Manufacturer": "Philips", "AcquisitionContrast": "FLUID_ATTENUATED"},
    ],
)
def test_an_enhanced_flair_is_known_by_its_functional_groups(
    make_flair_series: MakeSeries, top: dict[str, str]
) -> None:
    empty = dict.fromkeys(("EchoTime", "RepetitionTime", "InversionTime", "ScanningSequence"))
    made = make_flair_series(
        slices=1, overrides={"SOPClassUID": EnhancedMRImageStorage, "NumberOfFrames": 10, **empty}
    )
    facts = enhanced(made, pulse="SPIN", echo=387.0, **top)
    assert facts.values["flair_physics"] is True
    assert facts.values["nulls_csf"] is True
    assert facts.values["states_inversion"] is True
    assert facts_of(made.series, rules_in_force(USUAL)).physics.echo_ms == 387.0


def test_every_fact_is_computed(make_flair_series: MakeSeries) -> None:
    made = make_flair_series()
    from dicom.volume import stack_grid

    facts = facts_of(made.series, rules_in_force(USUAL))
    assert set(FACTS) - set(facts.values) == {"slices", "slice_mm", "pixel_mm", "extent_mm"}
    whole = with_geometry(facts, stack_grid(made.series)[0]).values
    assert set(whole) == set(FACTS)
    assert (whole["slices"], whole["slice_mm"], whole["pixel_mm"]) == pytest.approx((10, 6.5, 0.75))
    assert whole["extent_mm"] == pytest.approx(65)


# A site's own rules ---------------------------------------------------------------------------


def test_a_site_refuses_by_description_and_the_decision_names_its_rule(
    make_flair_series: MakeSeries,
) -> None:
    refuse = {"id": "no-screening", "when": [{"fact": "description", "matches": "screen"}]}
    settings = site(refuse=[refuse])
    wanted = make_flair_series()
    unwanted = make_flair_series(overrides={"SeriesDescription": "FLAIR Screening Musterfrau"})
    assert decide(wanted, settings).reason == "selected"
    decision = decide(unwanted, settings)
    assert (decision.reason, decision.rule) == ("refused-by-site", "no-screening")
    assert decision.outcome is Outcome.SKIPPED
    assert "Musterfrau" not in decision.explanation + decision.change
    assert decide(unwanted).reason == "selected"


def test_what_is_no_flair_keeps_its_reason_whatever_a_site_refuses(
    make_flair_series: MakeSeries,
) -> None:
    settings = site(refuse=[{"id": "all", "when": [{"fact": "modality", "equals": ["MR"]}]}])
    assert decide(make_flair_series(overrides={"EchoTime": "10"}), settings).rule == (
        "short-echo-time"
    )
    assert decide(make_flair_series(), settings).rule == "all"


def test_a_site_refuses_by_geometry_and_wants_a_reader_told(make_flair_series: MakeSeries) -> None:
    rule = {
        "id": "thick",
        "when": [{"fact": "slice_mm", "at_least": 6}],
        "outcome": "not_analysed",
        "why": "slices {slice_mm} mm apart",
    }
    decision = decide(make_flair_series(), site(refuse=[rule]))
    assert (decision.rule, decision.outcome) == ("thick", Outcome.NOT_ANALYSED)
    assert decision.explanation == "slices 6.5 mm apart"
    thin = make_flair_series(spacing_mm=(3.0, 0.5, 0.75), slices=20)
    assert decide(thin, site(refuse=[rule])).reason == "selected"


def test_a_site_changes_a_threshold(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(overrides={"EchoTime": "55"})
    assert decide(made).rule == "short-echo-time"
    assert "60 ms" in decide(made).change
    assert decide(made, site(thresholds={"shortest_echo_ms": 50})).reason == "selected"


def test_a_site_disables_a_rule(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(overrides={"ImageType": ["DERIVED", "SECONDARY", "MPR"]})
    assert decide(made).reason == "derived-reformat"
    decision = decide(made, site(disable=["reformat"]))
    assert (decision.reason, decision.score) == ("selected", 0.8)


def test_a_site_adds_a_word(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(
        overrides={
            "InversionTime": None,
            "ScanningSequence": "SE",
            "SeriesDescription": "t2 Wasser unterdr. tra",
            "ProtocolName": "",
        }
    )
    assert decide(made).rule == "no-inversion"
    assert decide(made, site(words={"flair": ["wasser unterdr"]})).reason == "selected"


def test_the_score_is_the_sum_of_its_evidence(make_flair_series: MakeSeries) -> None:
    decision = decide(make_flair_series(overrides={"ImageType": ["DERIVED", "PRIMARY"]}))
    assert dict(decision.evidence)["score-derived"] == -0.1
    assert decision.score == pytest.approx(sum(points for _, points in decision.evidence))


# Two FLAIR in one study -----------------------------------------------------------------------


def two_and_three_d(make: MakeSeries) -> tuple[Any, Any]:
    two = make(series_instance_uid="1.2.2", overrides={"MRAcquisitionType": "2D"})
    three = make(
        series_instance_uid="1.2.3",
        slices=24,
        spacing_mm=(2.0, 0.5, 0.75),
        overrides={
            "MRAcquisitionType": "3D",
            **times(5000, 387, 1800),
        },
    )
    return two, three


@pytest.mark.parametrize(("prefer", "chosen"), [("2d", "1.2.2"), ("3d", "1.2.3")])
def test_a_site_prefers_2d_or_3d_and_both_decisions_say_so(
    make_flair_series: MakeSeries, prefer: str, chosen: str
) -> None:
    series = two_and_three_d(make_flair_series)
    selection = choice(*series, settings=site(prefer=prefer))
    assert selection.selected == chosen
    (other,) = (one for one in selection.decisions if one.series_instance_uid != chosen)
    assert other.reason == "other-flair-chosen"
    assert f"the site prefers {prefer.upper()}" in other.explanation
    assert f"since the site prefers {prefer.upper()}" in of(selection, chosen).explanation
    assert "chosen of 2 usable FLAIR" in of(selection, chosen).explanation


def test_without_a_preference_coverage_and_voxels_decide_and_are_named(
    make_flair_series: MakeSeries,
) -> None:
    two, three = two_and_three_d(make_flair_series)  # 65 mm and 48 mm of a head
    selection = choice(two, three)
    assert selection.selected == "1.2.2"
    assert "by its coverage, 65 mm to 48" in of(selection, "1.2.2").explanation
    assert "covers 48 mm and the chosen one 65" in of(selection, "1.2.3").explanation


def test_a_sites_favour_outranks_score_but_never_makes_a_flair(
    make_flair_series: MakeSeries,
) -> None:
    plain = make_flair_series(series_instance_uid="1.2.1")
    derived = make_flair_series(
        series_instance_uid="1.2.2",
        overrides={"ImageType": ["DERIVED", "PRIMARY"], "StationName": "MR7"},
    )
    t2 = make_flair_series(
        series_instance_uid="1.2.3", overrides={"EchoTime": "10", "StationName": "MR7"}
    )
    favour = {"id": "mr7", "when": [{"fact": "station", "equals": ["mr7"]}]}
    assert choice(plain, derived, t2).selected == "1.2.1"
    selection = choice(plain, derived, t2, settings=site(favour=[favour]))
    assert selection.selected == "1.2.2"
    assert "(mr7)" in of(selection, "1.2.1").explanation
    assert "(mr7)" in of(selection, "1.2.2").explanation
    assert of(selection, "1.2.3").reason == "not-flair-echo-time"


CONTRAST: dict[str, tuple[bool, dict[str, Any]]] = {
    "agent": (True, {"ContrastBolusAgent": "GADOVIST"}),
    "volume": (True, {"ContrastBolusVolume": "7.5"}),
    "description +C": (True, {"SeriesDescription": "Ax FLAIR +C"}),
    "description post": (True, {"SeriesDescription": "FLAIR_3D_POST"}),
    "description KM": (True, {"SeriesDescription": "t2 flair tra KM"}),
    "agent none": (False, {"ContrastBolusAgent": "NONE"}),
    "agent nativ": (False, {"ContrastBolusAgent": "nativ"}),
    "volume 0": (False, {"ContrastBolusVolume": "0"}),
    "description pre": (False, {"SeriesDescription": "FLAIR pre contrast"}),
    "description without": (False, {"SeriesDescription": "FLAIR without contrast"}),
    "description posterior": (False, {"SeriesDescription": "FLAIR posterior fossa"}),
    "protocol of the whole examination": (False, {"ProtocolName": "MS brain w wo contrast"}),
}


@pytest.mark.parametrize(("given", "overrides"), CONTRAST.values(), ids=CONTRAST.keys())
def test_contrast_medium_is_told_by_header_or_description(
    make_flair_series: MakeSeries, given: bool, overrides: dict[str, Any]
) -> None:
    made = make_flair_series(overrides=overrides)
    assert facts_of(made.series, rules_in_force(USUAL)).values["post_contrast"] is given


def test_a_flair_after_contrast_is_used_when_it_is_the_only_one_and_says_so(
    make_flair_series: MakeSeries,
) -> None:
    decision = decide(make_flair_series(overrides={"ContrastBolusAgent": "GADOVIST"}))
    assert (decision.reason, decision.score) == ("selected", 0.9)
    assert "after contrast medium: ContrastBolusAgent is stated" in decision.explanation


def test_a_poorer_flair_before_contrast_comes_before_a_better_one_after_it(
    make_flair_series: MakeSeries,
) -> None:
    before = make_flair_series(
        series_instance_uid="1.2.1",
        overrides={"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": ""},
    )
    after = make_flair_series(
        series_instance_uid="1.2.2", overrides={"ContrastBolusAgent": "GADOVIST"}
    )
    selection = choice(before, after)
    assert selection.selected == "1.2.1"
    assert of(selection, "1.2.1").score < of(selection, "1.2.2").score
    assert "after contrast medium" in of(selection, "1.2.2").explanation
    assert "since that is after contrast medium" in of(selection, "1.2.1").explanation
    assert choice(before, after, settings=site(post_contrast="equal")).selected == "1.2.2"


def test_what_follows_a_series_with_contrast_is_after_contrast_too(
    make_flair_series: MakeSeries,
) -> None:
    t1 = make_flair_series(
        series_instance_uid="1.2.1",
        overrides={
            "EchoTime": "10",
            "InversionTime": None,
            "ContrastBolusAgent": "GADOVIST",
            "AcquisitionTime": "104000",
        },
    )
    early, late = (
        make_flair_series(
            series_instance_uid=uid,
            overrides={"AcquisitionTime": time, "SeriesNumber": number},
        )
        for uid, time, number in (("1.2.2", "103000", "4"), ("1.2.3", "105000", "9"))
    )
    selection = choice(t1, early, late)
    assert selection.selected == "1.2.2"
    assert "acquired after a series that states contrast" in of(selection, "1.2.3").explanation
    assert choice(early, late).selected == "1.2.3"  # a repeat: the later one, as ever
    assert "used because no FLAIR before it can be" in of(choice(t1, late), "1.2.3").explanation


def test_a_site_refuses_flair_after_contrast(make_flair_series: MakeSeries) -> None:
    made = make_flair_series(overrides={"ContrastBolusAgent": "GADOVIST"})
    decision = decide(made, site(post_contrast="refuse"))
    assert (decision.reason, decision.outcome) == ("post-contrast", Outcome.NOT_ANALYSED)
    assert decide(make_flair_series(), site(post_contrast="refuse")).reason == "selected"


def test_a_stack_that_is_refused_says_what_would_have_to_be_sent(
    make_flair_series: MakeSeries,
) -> None:
    decision = decide(make_flair_series(slices=12, drop=[5]))
    assert (decision.reason, decision.rule) == ("missing-slice", "stack")
    assert "missing slice" in decision.change
