"""The PDF under an independent reader (poppler), and what it says and does not say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom.checks import printed_strings
from pipeline.report_pdf import KeyPicture, LesionRow, PdfReport, build_pdf

PDFTOTEXT, PDFINFO = "/usr/bin/pdftotext", "/usr/bin/pdfinfo"
BANNER = "RESEARCH - NOT FOR CLINICAL USE"

needs_poppler = pytest.mark.skipif(
    not all(map(shutil.which, (PDFTOTEXT, PDFINFO))), reason="apt-get install poppler-utils"
)


def row(number: int) -> LesionRow:
    return LesionRow(
        number, (230, 159, 0), "periventricular", f"{1 / number:.3f}", "7.2", "3 to 5", "0.84"
    )


def report(lesions: int = 2, **changes: object) -> PdfReport:
    plain = PdfReport(
        banner=BANNER,
        identity=(("Patient", "Phantom, Flair"), ("Patient ID", "TEST-1"), ("Sex", "O")),
        found="2 lesions, total volume 1.50 ml.",
        figures=(("1.50 ml", "total volume"), ("2", "lesions"), ("1", "of at least 3 mm")),
        verdict="review",
        flags=("The brain is cut off at the last slice.",),
        regions=(("periventricular", "2", "1.500"),),
        lesions=tuple(row(number + 1) for number in range(lesions)),
        more_lesions="",
        not_assessed="Spinal cord, optic nerve.",
        analysed=(("Series", "4: t2 flair tra"),),
        method=("Measured by software.",),
        model=(("Name", "tiny 1.0"),),
        limits=("Useless.",),
        made_by="flairnode, model tiny 1.0",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names fields


PICTURE = KeyPicture(np.full((60, 48, 3), 90, np.uint8), "Lesion 1: the largest. Image 3.")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=True)
    return done.stdout.decode()


def words(pdf: bytes, folder: Path) -> str:
    (folder / "report.pdf").write_bytes(pdf)
    return " ".join(run(PDFTOTEXT, "-layout", folder / "report.pdf", "-").split())


@needs_poppler
def test_poppler_finds_every_number_and_word(tmp_path: Path) -> None:
    found = words(build_pdf(report(), [PICTURE]), tmp_path)
    for said in (
        BANNER,
        "Patient ID TEST-1",
        "Quality check: REVIEW",
        "The brain is cut off at the last slice.",
        "1.50 ml 2 1",
        "periventricular 2 1.500",
        "1 periventricular 1.000 7.2 3 to 5 0.84",
        "2 periventricular 0.500 7.2 3 to 5 0.84",
        "Lesion 1: the largest. Image 3.",
        "Spinal cord, optic nerve.",
        "not verified by a physician; no diagnosis",
        "Page 1 of 2",
    ):
        assert said in found


@needs_poppler
def test_our_own_reader_finds_the_same_strings_as_poppler(tmp_path: Path) -> None:
    pdf = build_pdf(report(12), [PICTURE])
    found = words(pdf, tmp_path)
    ours = [string for string in printed_strings(pdf) if "?" not in string]
    assert len(ours) > 90
    for string in ours:
        assert " ".join(string.split()) in found


def test_every_row_of_numbers_stands_in_one_piece() -> None:
    whole = report(30)
    printed = " ".join(printed_strings(build_pdf(whole, [])))
    rows = list(whole.printed())
    assert len(rows) == 1 + 3 + 1 + 30
    for cells in rows:
        assert " ".join(cells) in printed


def test_only_a_research_model_has_the_banner_and_has_it_on_every_page() -> None:
    research = printed_strings(build_pdf(report(40), []))
    pages = sum(string.startswith("Page ") for string in research)
    assert pages >= 2
    assert research.count(BANNER) == pages
    assert BANNER not in printed_strings(build_pdf(report(40, banner=""), []))


@needs_poppler
def test_forty_lesions_and_three_pictures_fit_three_pages(tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(build_pdf(report(40), [PICTURE] * 3))
    assert re.search(r"Pages:\s+[23]\n", run(PDFINFO, tmp_path / "report.pdf"))


def test_every_page_but_the_first_says_whose_it_is() -> None:
    printed = printed_strings(build_pdf(report(40), []))
    pages = sum(string.startswith("Page ") for string in printed)
    assert printed.count("FLAIR lesion report: Phantom, Flair - TEST-1 - O") == pages - 1


def test_no_criterion_of_a_disease_is_applied() -> None:
    printed = " ".join(printed_strings(build_pdf(report(), []))).lower()
    for word in ("mcdonald", "dissemination", "multiple sclerosis"):
        assert word not in printed


@needs_poppler
@pytest.mark.parametrize("name", ["Müller, Jürgen", "Παπαδόπουλος, Γιώργος", "Иванов, Пётр"])
def test_latin_greek_and_cyrillic_names_are_printed(name: str, tmp_path: Path) -> None:
    assert name in words(build_pdf(report(identity=(("Patient", name),)), []), tmp_path)


@pytest.mark.parametrize(
    ("name", "font"),
    [
        ("山田 太郎", b"HeiseiKakuGo-W5"),
        ("やまだ たろう", b"HeiseiKakuGo-W5"),
        ("张伟", b"STSong-Light"),
        ("黃麗華", b"MSung-Light"),
        ("김희중", b"HYSMyeongJo-Medium"),
    ],
)
def test_east_asian_names_are_set_in_a_font_of_their_country(name: str, font: bytes) -> None:
    pdf = build_pdf(report(identity=(("Patient", f"Yamada, Tarou ({name})"),)), [])
    assert b"/" + font in pdf


@pytest.mark.parametrize(
    ("name", "said"),
    [("דוד", "[Hebrew letters]"), ("علي", "[Arabic letters]"), ("สมชาย", "[Thai letters]")],
)
def test_letters_that_would_be_drawn_wrong_are_named_instead(name: str, said: str) -> None:
    pdf = build_pdf(report(identity=(("Patient", f"Known, As ({name})"),)), [])
    assert any(said in string for string in printed_strings(pdf))


def test_markup_in_a_description_is_printed_and_not_obeyed() -> None:
    pdf = build_pdf(report(analysed=(("Series", "<b>T2</b> & (more)"),)), [])
    assert "<b>T2</b> & (more)" in "".join(printed_strings(pdf))


def test_the_same_report_gives_the_same_bytes_in_another_process() -> None:
    program = (
        "import hashlib; from tests.pipeline.test_report_pdf import *;"
        "print(hashlib.sha256(build_pdf(report(), [PICTURE])).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_length_is_even_as_that_of_a_dicom_value_must_be() -> None:
    for extra in ("", "x", "xx", "xyz"):
        assert len(build_pdf(report(not_assessed=f"Cord{extra}."), [])) % 2 == 0
