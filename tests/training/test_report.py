"""The report of a run: its numbers, its plain sentences, and that it stands alone."""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dicom.errors import EmptyInputError, UnreadableError
from tests.training.pictures import row, volume
from tests.training.runs import case_row, refused_row, write_run
from training.commands import register
from training.content import Cell, Document, Table, Words
from training.report import OtherRevisionError, build, read_run, write
from training.statistics import proportion

NO_NUMBER = r"\b(nan|NaN|inf|None)\b"
VOID = {"meta", "img", "br", "polyline", "circle"}


class Page(HTMLParser):
    """Checks that elements close in order, and keeps text, attributes and cells."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def words(document: Document) -> str:
    """Every paragraph of a report."""
    return "\n".join(
        block.text
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Words)
    )


def table(document: Document, title: str, number: int = 0) -> list[list[str]]:
    """The text of a table."""
    (section,) = (one for one in document.sections if one.title == title)
    tables = [block for block in section.blocks if isinstance(block, Table)]
    return [
        [cell.text if isinstance(cell, Cell) else str(cell) for cell in line]
        for line in tables[number].rows
    ]


def report_of(tmp_path: Path, rows: list[dict[str, Any]], **asked: Any) -> Document:  # noqa: ANN401
    run = read_run(write_run(tmp_path / "run", rows))
    return build(run, draws=100, **asked).document


COHORT = [
    # Slices of a: found, found, no lesion and left alone, no lesion and marked.
    case_row(
        "a",
        volume(["####"], ["####"], ["...."], ["...."]),
        volume(["####"], ["##.."], ["...."], ["#..."]),
        about={"centre": "North", "fold": "0", "sex": "F", "age": "31"},
    ),
    # Of b: missed, no lesion and left alone.
    case_row(
        "b",
        volume(["####"], ["...."]),
        volume(["...."], ["...."]),
        about={"centre": "South", "fold": "1", "sex": "M", "age": "47"},
    ),
    refused_row("c"),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A report with pictures."""
    run = write_run(tmp_path / "run", COHORT)
    (run / "pictures").mkdir()
    Image.fromarray(np.full((40, 30, 3), 99, np.uint8)).save(run / "pictures/a-overview.png")
    shown = [
        {"kind": "overview", "file": "a-overview.png", "slice": 1, "of_slices": 4, "volume_ml": 1}
    ]
    (run / "cases/a.json").write_text(json.dumps({**COHORT[0], "pictures": shown}))
    write(run, tmp_path / "report", draws=100)
    return tmp_path / "report"


def test_the_page_parses_and_needs_nothing_but_itself(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = read_page(written / "report.html")
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    sources = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith(("data:image/png;base64,", "#s")) for value in sources)
    assert any(value.startswith("data:") for value in sources)
    # What a case says is text: it cannot become part of the page.
    assert "the <other> grid" in page.text
    assert "<other>" not in text
    # An identity that a link jumps to stands once.
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_and_the_pdf_hold_the_numbers(written: Path) -> None:
    text = " ".join(read_page(written / "report.html").text)
    # Dice of a: 2 x 6 / (8 + 7); of b 0.
    assert f"{(12 / 15 + 0) / 2:.3f}" in text
    assert not re.search(NO_NUMBER, text)
    pdf = subprocess.run(
        ["pdftotext", "-layout", written / "report.pdf", "-"], capture_output=True, check=True
    ).stdout.decode()
    assert re.search(r"Dice \(DSC\) +0\.400 ", pdf)
    assert "2 patients (2 cases): fewer than 20" in " ".join(pdf.split())
    assert "page 1" in pdf


def test_the_same_run_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write(tmp_path / "run", tmp_path / "again", draws=100)
    for path in sorted(written.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert len(list(written.iterdir())) == 6
    # The only day is that of the measurements.
    assert set(re.findall(r"20\d\d-\d\d-\d\d", (written / "report.html").read_text())) == {
        "2026-03-04"
    }


def test_every_case_slice_and_lesion_is_in_a_table_for_other_programs(written: Path) -> None:
    def lines(name: str) -> list[dict[str, str]]:
        with (written / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    cases, slices, lesions = lines("cases"), lines("slices"), lines("lesions")
    assert [one["case"] for one in cases] == ["a", "b", "c"]
    assert float(cases[0]["dsc"]) == pytest.approx(12 / 15)
    assert (cases[0]["about.centre"], cases[2]["reason"]) == ("North", "grid-mismatch")
    assert [(one["case"], one["slice"], one["overlap"]) for one in slices] == [
        ("a", "1", "1.0"),
        ("a", "2", "0.5"),
        ("a", "3", "0.0"),
        ("a", "4", "0.0"),
        ("b", "1", "0.0"),
        ("b", "2", "0.0"),
    ]
    # The two slices of a hold one lesion of 8 voxels of 1.5 mm3; the mark touches no lesion of it.
    assert [(one["case"], one["of"], one["volume_mm3"], one["met"]) for one in lesions] == [
        ("a", "reference", "12.0", "True"),
        ("a", "prediction", "9.0", "True"),
        ("a", "prediction", "1.5", "False"),
        ("b", "reference", "6.0", "False"),
    ]


def test_the_json_holds_versions_digests_settings_and_seed(written: Path) -> None:
    content = json.loads((written / "report.json").read_text())
    made = content["made"]
    assert made["models"][0]["digest"] == "5a"
    assert made["models"][0]["settings"] == {"fold": [0]}
    assert made["software"][0]["numpy"] == "2"
    assert (made["seed"], made["draws"]) == (7, 100)
    assert set(made["rows_sha256"]) == set(made["inputs_sha256"]) == {"a", "b", "c"}
    assert content["figures"]["held_out"]["slice_sensitivity"]["n"] == 3
    assert content["main_cohort"] == "held_out"


def test_both_readings_stand_beside_each_other(tmp_path: Path) -> None:
    document = report_of(tmp_path, COHORT)
    lines = {line[0]: line for line in table(document, "Two readings of the same cohort")}
    # All: TP 2, FN 1, TN 2, FP 1; there are just as many without lesions, so the draw is all.
    specificity = proportion(2, 3)
    assert lines["sensitivity"][1].startswith("0.667 (")
    assert lines["sensitivity"][2:4] == ["6", "specificity"]
    assert lines["sensitivity"][4] == "0.667"
    assert lines["sensitivity"][5] == f"{specificity.low:.3f} to {specificity.high:.3f}"
    assert lines["sensitivity"][7] == "3"
    assert lines["specificity"][1:4] == ["not printed", "-", "-"]
    voxels = {line[0]: line for line in table(document, "Two readings of the same cohort", 1)}
    # Detected slices: Dice 1 and 2 x 2 / 6. All three positive ones: the missed one is 0.
    assert voxels["DSC"][1].startswith(f"{(1 + 2 / 3) / 2:.3f} (")
    assert voxels["DSC"][2] == "2"
    assert voxels["DSC"][3].startswith(f"{(1 + 2 / 3) / 3:.3f}")
    assert voxels["DSC"][4:6] == ["3", "0.400"]


def test_folds_centres_and_subgroups_come_from_what_is_known(tmp_path: Path) -> None:
    document = report_of(tmp_path, COHORT)
    folds = table(document, "Folds and centres")
    assert [line[:2] for line in folds] == [
        ["0", "0.800"],
        ["1", "0.000"],
        ["not given", "not defined"],
        ["mean of 2 folds", "0.400"],
    ]
    assert folds[-1][2] == f"SD {np.std([0.8, 0], ddof=1):.3f}"
    centres = table(document, "Folds and centres", 1)
    assert [line[:4] for line in centres] == [
        ["North", "1 of 1", "1", "0.800 [1]"],
        ["South", "1 of 1", "1", "0.000 [1]"],
        ["not given", "0 of 1", "0", "not defined [0]"],
    ]
    assert "without a table: scanner, field strength, phenotype." in words(document)


def test_without_folds_repeats_readers_and_probabilities_it_says_so(tmp_path: Path) -> None:
    said = words(report_of(tmp_path, [case_row("a", row("##"), row("##"))]))
    for sentence in (
        "No fold is given in patients.csv",
        "No centre is given in patients.csv",
        "No case is given as a repeat",
        "No case has a second reader",
        "there is no calibration",
        "no pictures",
        "there is no quality check to count",
    ):
        assert sentence in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([case_row("a", row("##"), row("##"))], "1 patient (1 case): fewer than 20"),
        (
            [case_row(name, row("...."), row("#...")) for name in "ab"],
            "No case has a lesion in its reference",
        ),
        ([refused_row("a"), refused_row("b")], "Of 2 real cases none was analysed"),
        (
            [case_row(name, row("##"), row("##"), patient="P") for name in "ab"],
            "1 patient has more than one case",
        ),
        (
            [case_row("a", row("##"), row("##"), about={"semi_synthetic": "yes"})],
            "There is no real case in this run",
        ),
        (
            [case_row(n, row("##"), row("##"), about={"in_training": "yes"}) for n in "ab"],
            "Both real cases of this run were in the training of the pack",
        ),
    ],
)
def test_a_cohort_at_the_edge_is_a_plain_sentence_and_never_nan(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    run = write_run(tmp_path / "run", rows)
    report = write(run, tmp_path / "report", draws=50)
    assert said in words(report.document)
    text = " ".join(read_page(tmp_path / "report/report.html").text)
    assert not re.search(NO_NUMBER, text)
    json.loads((tmp_path / "report/report.json").read_text(), parse_constant=pytest.fail)


def test_one_image_under_two_names_is_told_and_one_given_twice_is_counted(tmp_path: Path) -> None:
    rows = [
        case_row("a", row("##"), row("##"), image_digest="1"),
        case_row("b", row("##"), row("##"), image_digest="1"),
        case_row("c1", row("##"), row("##"), patient="c", image_digest="2"),
        case_row("c2", row("##"), row("##"), patient="c", image_digest="2"),
        case_row("d", row("##"), row("##"), image_digest="3"),
    ]
    said = words(report_of(tmp_path, rows))
    assert "a and b have one image: one person under the names a and b." in said
    assert "c1 and c2 have one image: it is counted 2 times in every mean." in said
    assert "d have" not in said


def test_where_the_cases_came_from_stands_in_the_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [case_row("a", row("##"), row("##"))])
    told = json.loads((folder / "run.json").read_text())
    told["cohort"] = {"part": "test", "pack_trained_on_these_splits": True}
    (folder / "run.json").write_text(json.dumps(told))
    lines = dict(table(build(read_run(folder), draws=50).document, "How it was made"))
    assert lines["cases"] == "part test, pack trained on these splits yes"


def test_twenty_patients_are_not_called_few(tmp_path: Path) -> None:
    rows = [case_row(f"c{index:02}", row("##."), row("##.")) for index in range(20)]
    said = words(report_of(tmp_path, rows))
    assert "fewer than" not in said
    assert "The figures rest on 20 cases of 20 patients." in said


def test_painted_and_trained_cases_stand_in_tables_of_their_own(tmp_path: Path) -> None:
    rows = [
        case_row("a", row("####"), row("####")),
        case_row("b", row("####"), row("##.."), about={"in_training": "yes"}),
        case_row("c", row("####"), row("#..."), about={"semi_synthetic": "yes"}),
    ]
    document = report_of(tmp_path, rows)
    for title, dice in (
        ("Main figures", "1.000"),
        ("Cases of the pack's training", "0.667"),
        ("Semi-synthetic cases", "0.400"),
    ):
        assert table(document, title)[0][:2] == ["Dice (DSC)", dice]
    assert "1 case of the pack's training is left out of every main figure" in words(document)
    assert "1 case is semi-synthetic" in words(document)


def test_repeats_and_a_second_reader_are_compared(tmp_path: Path) -> None:
    pairs = {
        "against_reference": case_row("x", row("####"), row("##.."))["metrics"],
        "against_prediction": case_row("x", row("##.."), row("####"))["metrics"],
    }
    rows = [
        case_row("a", row("####"), row("####"), patient="P", second_reader=pairs),
        case_row("a2", row("####"), row("##.."), patient="P", about={"repeat_of": "a"}),
    ]
    document = report_of(tmp_path, rows)
    # 6 and 3 mm3.
    (scans,) = table(document, "Repeat scans and a second reader")
    assert scans == ["a", "a2", "0.006", "0.003", "-0.003"]
    readers = table(document, "Repeat scans and a second reader", 1)
    assert readers[0] == ["Dice (DSC)", "0.667 [1]", "1.000 [1]", "0.667 [1]"]


def test_a_baseline_is_compared_on_the_same_cases_alone(tmp_path: Path) -> None:
    ours = [case_row(name, row("####"), row("####")) for name in "abcd"]
    theirs = [case_row(name, row("####"), row("##..")) for name in "abc"]
    theirs[2]["sha256"] = {"reference.nii.gz": "another"}
    run, other = write_run(tmp_path / "run", ours), write_run(tmp_path / "other", theirs)
    report = build(read_run(run), baseline=read_run(other), draws=100)
    said = words(report.document)
    assert "2 cases with the same reference, analysed in both" in said
    assert "Left out: 2 of this run, 1 of the baseline." in said
    dice = table(report.document, "Comparison with a baseline")[0]
    assert dice == [
        "Dice (DSC)",
        "1.000 [2]",
        "0.667 [2]",
        "0.333",
        "0.333 to 0.333",
        "cannot be told from 2 patients",
    ]
    compared = report.content["comparison"]
    assert isinstance(compared, list)
    assert compared[0]["cases"] == 2  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("halved", "said"), [(range(20), "differs"), (range(1), "no difference shown")]
)
def test_twenty_patients_can_show_a_difference(tmp_path: Path, halved: range, said: str) -> None:
    ours = [case_row(f"c{index:02}", row("####"), row("####")) for index in range(20)]
    theirs = [
        case_row(f"c{index:02}", row("####"), row("##.." if index in halved else "####"))
        for index in range(20)
    ]
    run, other = write_run(tmp_path / "run", ours), write_run(tmp_path / "other", theirs)
    report = build(read_run(run), baseline=read_run(other), draws=100)
    assert table(report.document, "Comparison with a baseline")[0][5] == said


def test_a_baseline_is_compared_where_both_have_a_value_and_neither_was_trained(
    tmp_path: Path,
) -> None:
    ours = [case_row(name, row("####"), row("####")) for name in "abc"]
    theirs = [
        case_row("a", row("####"), row("##..")),
        case_row("b", row("####"), row("....")),  # no surface, so no HD95
        case_row("c", row("####"), row("####"), about={"in_training": "yes"}),
    ]
    run, other = write_run(tmp_path / "run", ours), write_run(tmp_path / "other", theirs)
    report = build(read_run(run), baseline=read_run(other), draws=100)
    lines = {line[0]: line for line in table(report.document, "Comparison with a baseline")}
    assert lines["Dice (DSC)"][1:3] == ["1.000 [2]", "0.333 [2]"]
    assert [text.split()[1] for text in lines["HD95, mm"][1:3]] == ["[1]", "[1]"]


def test_cases_that_were_not_measured_and_those_left_over_are_counted(tmp_path: Path) -> None:
    rows = [case_row(name, row("##"), row("##")) for name in "ab"]
    run = read_run(write_run(tmp_path / "run", rows, asked=["a", "x", "y"]))
    assert (run.unmeasured, run.left_over) == (("x", "y"), ("b",))
    said = words(build(run, draws=50).document)
    assert "2 cases are asked for and not measured yet." in said
    assert "1 case is in the folder from an earlier run, and left out." in said


def test_a_run_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmptyInputError, match="no measured case"):
        read_run(tmp_path)
    run = write_run(tmp_path / "run", [case_row("a", row("#"), row("#"))])
    (run / "cases/a.json").write_text("{")
    with pytest.raises(UnreadableError, match="measure the case again"):
        read_run(run)
    (run / "cases/a.json").write_text(json.dumps({**COHORT[0], "measures_revision": "1"}))
    with pytest.raises(OtherRevisionError, match="revision 1"):
        read_run(run)


def test_doubt_is_plotted_where_the_run_has_it(tmp_path: Path) -> None:
    none = [0] * 8
    sums = {"count": [8, *none, 2], "sum_probability": [0.4, *none, 1.9], "sum_true": [0, *none, 1]}
    rows = [case_row("a", row("##"), row("##"), calibration=sums, disagreement=sums)]
    document = report_of(tmp_path, rows)
    (section,) = (one for one in document.sections if one.title == "Calibration and doubt")
    captions = [getattr(block, "caption", "") for block in section.blocks]
    # |0 - 0.4| + |1 - 1.9| over 10 voxels.
    assert "Expected calibration error 0.1300" in captions[0]
    assert captions[1].startswith("10 voxels of the brain")


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers(dest="command"))
    read = parser.parse_args(["validate", "report", *arguments])
    status: int = read.run(read)
    return status


def test_the_command_says_with_its_exit_status_whether_the_test_is_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [case_row(f"c{index}", row("####"), row("####")) for index in range(6)]
    run = write_run(tmp_path / "run", rows)
    asked = tmp_path / "acceptance.toml"
    text = "declared_on = 2026-01-01\nfewest_patients = 5\n[[threshold]]\nmeasure = 'dsc'\n"
    asked.write_text(f"{text}at_least = 0.9")
    assert call(str(run)) == 0
    assert (run / "report/report.pdf").is_file()
    assert call(str(run), "--acceptance", str(asked), "--output", str(tmp_path / "out")) == 0
    assert "acceptance test: passed" in capsys.readouterr().out
    page = " ".join(read_page(tmp_path / "out/report.html").text)
    assert "Acceptance test: 1 passed." in page
    asked.write_text(f"{text}at_most = 0.9")
    assert call(str(run), "--acceptance", str(asked), "--output", str(tmp_path / "out")) == 3
    assert "acceptance test: failed" in capsys.readouterr().out
