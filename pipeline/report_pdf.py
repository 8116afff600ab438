"""The report as a PDF, for a person: what was found, how far to trust it, how it was made.

It is filed in the PACS with the patient's other documents, so it carries the identity that the PACS
knows. The same report always gives the same bytes: no clock and no random name is in it.

Letters are DejaVu Sans (Latin, Greek, Cyrillic, embedded). Chinese, Japanese and Korean are set in
the fonts that PDF readers bring for them, and not embedded. Scripts that run from right to left,
and those that DejaVu lacks (Thai, Devanagari and others), would need an engine that shapes them:
such letters are named in brackets instead of being drawn wrong.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final
from xml.sax.saxutils import escape

from PIL import Image as PilImage
from reportlab import rl_config
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.enums import TA_CENTER, TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Spacer,
    Table,
    TableStyle,
)

from pipeline.slice_picture import Colour, Rgb, font_path

TITLE: Final = "FLAIR lesion report"
STANDING: Final = "Result of software. Preliminary, not verified by a physician; no diagnosis."

_PLAIN, _BOLD = "FlairnodeSans", "FlairnodeSans-Bold"
_CID_FONTS = (
    ("shift_jis", "HeiseiKakuGo-W5"),
    ("gb2312", "STSong-Light"),
    ("big5", "MSung-Light"),
    ("euc_kr", "HYSMyeongJo-Medium"),
)
"""A font has the characters of its country's code; a run goes to the first that has all of it."""
_RIGHT_TO_LEFT = ("R", "AL")

_MARGIN = 17 * mm
_BANNER_HEIGHT = 9 * mm
_WIDTH = A4[0] - 2 * _MARGIN
_TOP = _BANNER_HEIGHT + 11 * mm  # of the frame, from the edge of the page; whose it is stands above

_INK, _GREY, _FAINT = HexColor(0x1B2733), HexColor(0x5B6875), HexColor(0xD5DBE1)
_ACCENT, _AMBER, _PALE = HexColor(0x1F4E79), HexColor(0xFFB000), HexColor(0xF3F6F9)
_VERDICTS = {
    "pass": (HexColor(0x2E7D4F), HexColor(0xEAF5EE)),
    "review": (HexColor(0xB26A00), HexColor(0xFFF5E0)),
}


@dataclass(frozen=True, slots=True)
class LesionRow:
    """One lesion, as it is printed."""

    number: int
    colour: Colour
    region: str
    volume_ml: str
    long_axis_mm: str
    images: str
    probability: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of the columns."""
        return (
            str(self.number),
            self.region,
            self.volume_ml,
            self.long_axis_mm,
            self.images,
            self.probability,
        )


@dataclass(frozen=True, slots=True, eq=False)
class KeyPicture:
    """One slice, and what it shows."""

    pixels: Rgb
    caption: str


@dataclass(frozen=True, slots=True)
class PdfReport:
    """Everything the document says, in words that are final."""

    banner: str
    """Across the top of every page; "" for a model that is no research model."""
    identity: tuple[tuple[str, str], ...]
    found: str
    figures: tuple[tuple[str, str], ...]
    """The few numbers that are printed large: value and what it is."""
    verdict: str
    flags: tuple[str, ...]
    """Of the quality check, in sentences."""
    regions: tuple[tuple[str, str, str], ...]
    """Region, number of lesions, volume in ml; () when no region is known."""
    lesions: tuple[LesionRow, ...]
    more_lesions: str
    """What is said of lesions that have no row; "" when all have one."""
    not_assessed: str
    analysed: tuple[tuple[str, str], ...]
    method: tuple[str, ...]
    model: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]
    made_by: str
    """At the foot of every page."""

    def printed(self) -> Iterator[tuple[str, ...]]:
        """Rows of numbers that must be found in the document, each in one piece."""
        if self.banner:
            yield (self.banner,)
        yield from self.figures
        yield from self.regions
        for lesion in self.lesions:
            yield lesion.cells


def build_pdf(report: PdfReport, pictures: Sequence[KeyPicture]) -> bytes:
    """The document: A4, of even length, the same bytes every time.

    Args:
        report: What it says.
        pictures: Key pictures, the most important first; up to three stand side by side.
    """
    _register_fonts()
    buffer = io.BytesIO()
    document = BaseDocTemplate(
        buffer,
        pagesize=A4,
        invariant=1,
        pageCompression=1,
        title=f"{report.banner}: {TITLE}" if report.banner else TITLE,
        author="flairnode",
        subject=STANDING,
        lang="en",
    )
    frame = Frame(_MARGIN, _MARGIN, _WIDTH, A4[1] - _MARGIN - _TOP, 0, 0, 0, 0, id="page")
    document.addPageTemplates(PageTemplate(frames=[frame]))
    document.build(list(_story(report, pictures)), canvasmaker=_numbered(report))
    content = buffer.getvalue()
    return content + b"\n" * (len(content) % 2)


# --- what stands where ---------------------------------------------------------------------------


def _story(report: PdfReport, pictures: Sequence[KeyPicture]) -> Iterator[Flowable]:
    yield _paragraph(TITLE, _style(20, bold=True, colour=_ACCENT, leading=25))
    yield _paragraph(STANDING, _style(9, colour=_GREY, leading=12))
    yield Spacer(1, 3 * mm)
    yield _identity(report.identity)
    yield Spacer(1, 4 * mm)
    yield _quality(report)
    yield Spacer(1, 4 * mm)
    yield _figures(report.figures)
    yield Spacer(1, 2 * mm)
    yield _paragraph(report.found, _style(10, bold=True, leading=14))
    yield from _regions(report.regions)
    if pictures:
        yield KeepTogether([_heading("Key pictures"), _pictures(pictures)])
    if report.lesions:
        yield CondPageBreak(45 * mm)
        yield _heading("Lesions")
        yield _lesions(report.lesions)
        if report.more_lesions:
            yield _paragraph(report.more_lesions, _NOTE)
        yield _paragraph(
            "Long axis: greatest extent in the plane of a slice. Images: as the viewer numbers"
            " them. Probability: mean over the lesion of what the model says, not calibrated.",
            _NOTE,
        )
    yield KeepTogether([_heading("What was not looked at"), _paragraph(report.not_assessed, _TEXT)])
    yield KeepTogether([_heading("Series analysed"), _facts(report.analysed)])
    yield KeepTogether([_heading("Method"), *(_bullet(one) for one in report.method)])
    yield KeepTogether([_heading("Model"), _facts(report.model)])
    if report.limits:
        yield KeepTogether(
            [_heading("Limits of the model"), *(_bullet(one) for one in report.limits)]
        )


def _identity(identity: Sequence[tuple[str, str]]) -> Flowable:
    half = -(-len(identity) // 2)
    rows = []
    for index in range(half):
        row: list[Flowable | str] = []
        for side in (index, index + half):
            label, value = identity[side] if side < len(identity) else ("", "")
            row += [_paragraph(label, _LABEL), _paragraph(value or "-", _VALUE)]
        rows.append(row)
    table = Table(rows, colWidths=[32 * mm, _WIDTH / 2 - 32 * mm] * 2)
    table.setStyle(
        TableStyle(
            [
                *_padding(1.5, 5),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("BACKGROUND", (0, 0), (-1, -1), _PALE),
                ("LINEABOVE", (0, 0), (-1, 0), 0.8, _ACCENT),
                ("LINEBELOW", (0, -1), (-1, -1), 0.8, _ACCENT),
            ]
        )
    )
    return table


def _quality(report: PdfReport) -> Flowable:
    colour, ground = _VERDICTS.get(report.verdict, (_GREY, _PALE))
    verdict = _style(11, bold=True, colour=colour, leading=14)
    said = {"pass": "no remark", "review": "look at these before using the numbers"}
    heading = f"Quality check: {report.verdict.upper()}"
    lines = [_paragraph(f"{heading} - {said.get(report.verdict, '')}".rstrip(" -"), verdict)]
    lines += [_bullet(flag) for flag in report.flags]
    table = Table([[lines]], colWidths=[_WIDTH])
    table.setStyle(
        TableStyle(
            [
                *_padding(5, 8),
                ("BACKGROUND", (0, 0), (-1, -1), ground),
                ("LINEBEFORE", (0, 0), (0, -1), 3, colour),
            ]
        )
    )
    return table


def _figures(figures: Sequence[tuple[str, str]]) -> Flowable:
    columns = [
        [
            _paragraph(value, _style(20, bold=True, colour=_ACCENT, leading=25, align=TA_CENTER)),
            _paragraph(name, _style(8, colour=_GREY, leading=11, align=TA_CENTER)),
        ]
        for value, name in figures
    ]
    table = Table([columns], colWidths=[_WIDTH / len(figures)] * len(figures))
    table.setStyle(
        TableStyle(
            [
                *_padding(4, 4),
                ("BOX", (0, 0), (-1, -1), 0.6, _FAINT),
                ("INNERGRID", (0, 0), (-1, -1), 0.6, _FAINT),
            ]
        )
    )
    return table


def _regions(regions: Sequence[tuple[str, str, str]]) -> Iterator[Flowable]:
    if not regions:
        return
    heads = [_head("Region"), _head("Lesions", TA_RIGHT), _head("Volume, ml", TA_RIGHT)]
    rows = [
        [_paragraph(name, _VALUE), _paragraph(count, _RIGHT), _paragraph(volume, _RIGHT)]
        for name, count, volume in regions
    ]
    table = Table([heads, *rows], colWidths=[80 * mm, 30 * mm, 35 * mm], hAlign="LEFT")
    table.setStyle(TableStyle(_ruled()))
    yield KeepTogether([_heading("Regions (approximate)"), table])


def _pictures(pictures: Sequence[KeyPicture]) -> Flowable:
    gap = 3 * mm
    shown = pictures[:3]
    room = (_WIDTH - 2 * gap) / 3
    highest = 72 * mm
    cells = []
    for picture in shown:
        height, width, _ = picture.pixels.shape
        scale = min(room / width, highest / height)
        drawn = _Drawn(picture.pixels, width * scale, height * scale)
        cells.append([drawn, Spacer(1, 1 * mm), _paragraph(picture.caption, _CAPTION)])
    table = Table([cells], colWidths=[room + gap] * len(cells), hAlign="LEFT")
    table.setStyle(TableStyle([*_padding(0, 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]))
    return table


def _lesions(lesions: Sequence[LesionRow]) -> Flowable:
    heads = ("No.", "Region", "Volume, ml", "Long axis, mm", "Images", "Probability")
    first, *others = (_head(text, TA_RIGHT) for text in heads)
    others[0] = _head(heads[1])
    rows: list[list[Any]] = [["", first, *others]]
    for lesion in lesions:
        number, region, *numbers = lesion.cells
        rows.append(
            [
                _Swatch(lesion.colour),
                _paragraph(number, _RIGHT),
                _paragraph(region, _VALUE),
                *(_paragraph(cell, _RIGHT) for cell in numbers),
            ]
        )
    widths = [7 * mm, 11 * mm, 46 * mm, 25 * mm, 29 * mm, 33 * mm, 25 * mm]
    table = Table(rows, colWidths=widths, repeatRows=1, hAlign="LEFT")
    table.setStyle(TableStyle(_ruled()))
    return table


def _facts(facts: Sequence[tuple[str, str]]) -> Flowable:
    rows = [[_paragraph(label, _LABEL), _paragraph(value, _VALUE)] for label, value in facts]
    table = Table(rows, colWidths=[36 * mm, _WIDTH - 36 * mm])
    table.setStyle(TableStyle([*_padding(1.2, 0), ("VALIGN", (0, 0), (-1, -1), "TOP")]))
    return table


def _padding(vertical: float, horizontal: float) -> list[tuple[Any, ...]]:
    whole = ((0, 0), (-1, -1))
    return [
        ("TOPPADDING", *whole, vertical),
        ("BOTTOMPADDING", *whole, vertical),
        ("LEFTPADDING", *whole, horizontal),
        ("RIGHTPADDING", *whole, horizontal),
    ]


def _ruled() -> list[tuple[Any, ...]]:
    return [
        *_padding(1.6, 4),
        ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
        ("BACKGROUND", (0, 0), (-1, 0), _PALE),
        ("LINEBELOW", (0, 0), (-1, 0), 0.8, _ACCENT),
        ("LINEBELOW", (0, 1), (-1, -1), 0.4, _FAINT),
    ]


class _Swatch(Flowable):  # type: ignore[misc]  # reportlab has no types
    """A square in the colour of a lesion."""

    def __init__(self, colour: Colour) -> None:
        super().__init__()
        self.width = self.height = 7
        self._colour = Color(*(part / 255 for part in colour))

    def draw(self) -> None:
        """Called by reportlab."""
        self.canv.setFillColor(self._colour)
        self.canv.rect(0, 0, 7, 7, stroke=0, fill=1)


class _Drawn(Flowable):  # type: ignore[misc]  # reportlab has no types
    """A picture, embedded without loss."""

    def __init__(self, pixels: Rgb, width: float, height: float) -> None:
        super().__init__()
        self.width, self.height = width, height
        self._image = ImageReader(PilImage.fromarray(pixels))

    def draw(self) -> None:
        """Called by reportlab."""
        self.canv.drawImage(self._image, 0, 0, self.width, self.height)


def _numbered(report: PdfReport) -> Callable[..., Canvas]:
    """A canvas that knows how many pages there are: what frames a page is drawn at the end."""

    class Numbered(Canvas):  # type: ignore[misc]  # reportlab has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
            super().__init__(*arguments, **options)
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:  # noqa: N802  # reportlab's name
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._pages, start=1):
                self.__dict__.update(page)
                _frame_of_page(self, report, number, len(self._pages))
                super().showPage()
            super().save()

    return Numbered


def _frame_of_page(canvas: Canvas, report: PdfReport, number: int, count: int) -> None:
    width, height = A4
    if report.banner:
        canvas.setFillColor(_AMBER)
        canvas.rect(0, height - _BANNER_HEIGHT, width, _BANNER_HEIGHT, stroke=0, fill=1)
        canvas.setFillColor(HexColor(0))
        canvas.setFont(_BOLD, 13)
        canvas.drawCentredString(width / 2, height - _BANNER_HEIGHT * 0.66, report.banner)
    if number > 1:  # a page may be printed alone
        whose = " - ".join(value for _, value in report.identity[:3] if value)
        _line(canvas, f"{TITLE}: {whose}", height - _TOP + 3 * mm)
    canvas.setStrokeColor(_FAINT)
    canvas.line(_MARGIN, 12.5 * mm, width - _MARGIN, 12.5 * mm)
    canvas.setFillColor(_GREY)
    canvas.setFont(_PLAIN, 7.5)
    canvas.drawString(_MARGIN, 9 * mm, report.made_by)
    canvas.drawString(_MARGIN, 5.8 * mm, STANDING)
    canvas.drawRightString(width - _MARGIN, 9 * mm, f"Page {number} of {count}")


def _line(canvas: Canvas, text: str, y: float) -> None:
    line = _paragraph(text, _style(8, colour=_GREY, leading=10))
    line.wrapOn(canvas, _WIDTH, 20 * mm)
    line.drawOn(canvas, _MARGIN, y)


# --- letters -------------------------------------------------------------------------------------


def _style(
    size: float,
    *,
    bold: bool = False,
    colour: Color = _INK,
    leading: float | None = None,
    align: int = 0,
    after: float = 0,
    indent: float = 0,
) -> ParagraphStyle:
    return ParagraphStyle(
        "text",
        fontName=_BOLD if bold else _PLAIN,
        fontSize=size,
        leading=leading or size * 1.35,
        textColor=colour,
        alignment=align,
        spaceAfter=after,
        leftIndent=indent,
        bulletIndent=indent - 9 if indent else 0,
        bulletFontName=_PLAIN,
        bulletFontSize=size,
    )


_TEXT = _style(9, leading=12.5)
_ITEM = _style(9, leading=12.5, indent=10)
_LABEL = _style(8.5, colour=_GREY, leading=11.5)
_VALUE = _style(9, leading=11.5)
_RIGHT = _style(9, leading=11.5, align=TA_RIGHT)
_NOTE = _style(7.5, colour=_GREY, leading=10.5)
_CAPTION = _style(8, colour=_GREY, leading=10.5)


def _heading(text: str) -> Flowable:
    style = _style(11.5, bold=True, colour=_ACCENT, leading=15, after=3)
    style.spaceBefore = 10
    return _paragraph(text, style)


def _head(text: str, align: int = 0) -> Flowable:
    return _paragraph(text, _style(8.5, bold=True, colour=_ACCENT, leading=11, align=align))


def _bullet(text: str) -> Flowable:
    return Paragraph(_markup(text), _ITEM, bulletText="\N{BULLET}")


def _paragraph(text: str, style: ParagraphStyle) -> Paragraph:
    return Paragraph(_markup(text), style)


@lru_cache(maxsize=1)
def _register_fonts() -> frozenset[int]:
    """Make the fonts known to reportlab; the code points that DejaVu Sans has."""
    rl_config.useA85 = 0  # streams in plain bytes: a quarter smaller
    # asciiReadable: numbers stand in the document as they are, for `dicom.checks` to read.
    plain = TTFont(_PLAIN, str(font_path()), asciiReadable=1)
    pdfmetrics.registerFont(plain)
    pdfmetrics.registerFont(TTFont(_BOLD, str(font_path(bold=True)), asciiReadable=1))
    for _, name in _CID_FONTS:
        pdfmetrics.registerFont(UnicodeCIDFont(name))
    return frozenset(plain.face.charToGlyph)


def _markup(text: str) -> str:
    """Text as reportlab reads it, every run of it in a font that has its letters."""
    runs = []
    for kind, letters in groupby(text, _kind):
        run = "".join(letters)
        if kind == "":
            runs.append(escape(run))
        elif kind == _EAST_ASIAN and (name := _cid_font(run)):
            runs.append(f'<font name="{name}">{escape(run)}</font>')
        else:
            script = unicodedata.name(run[0], "UNKNOWN").split()[0].split("-")[0]
            runs.append(f"[{script.capitalize()} letters]")
    return "".join(runs)


_EAST_ASIAN = "east-asian"


def _kind(letter: str) -> str:
    """Empty for what DejaVu Sans draws, `east-asian`, or the script that cannot be drawn."""
    if unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT:
        return "right-to-left"
    if ord(letter) in _register_fonts():
        return ""
    if unicodedata.east_asian_width(letter) in ("W", "F"):
        return _EAST_ASIAN
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def _cid_font(run: str) -> str | None:
    for encoding, name in _CID_FONTS:
        try:
            run.encode(encoding)
        except UnicodeEncodeError:
            continue
        return name
    return None
