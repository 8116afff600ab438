"""The report as a short PDF: verdict, main tables, plots and examples. Same run, same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    Image,
    KeepTogether,
    PageTemplate,
    Paragraph,
    Spacer,
    TableStyle,
)
from reportlab.platypus import Table as Grid

from pipeline.slice_picture import font_path
from training.content import (
    Block,
    Cell,
    Document,
    Pictures,
    Plot,
    Section,
    Table,
    Verdict,
    Words,
)
from training.drawing import to_reportlab

PLAIN, BOLD = "ReportSans", "ReportSans-Bold"
MARGIN: Final = 16 * mm
WIDTH: Final = A4[0] - 2 * MARGIN
INK, SOFT, RULE = HexColor(0x1B2733), HexColor(0x5B6875), HexColor(0xD9DFE5)
TONES: Final = {
    "plain": (INK, HexColor(0xF4F7F9)),
    "good": (HexColor(0x2E7D4F), HexColor(0xEAF5EE)),
    "caution": (HexColor(0x9A5B00), HexColor(0xFFF5E0)),
    "bad": (HexColor(0xB3261E), HexColor(0xFDECEA)),
}
PLOT_WIDTH: Final = 132 * mm
PICTURES_IN_A_ROW: Final = 4
AFTER_NUMBER: Final = 8.0  # points
KEPT_TOGETHER: Final = 20  # rows: a third of a page
NAME_SHARE: Final = 0.22  # of the width, where a table is of names and values


def to_pdf(document: Document) -> bytes:
    """The document."""
    _fonts()
    written = io.BytesIO()

    def frame_of_page(canvas: Any, template: Any) -> None:  # noqa: ANN401  # reportlab
        canvas.saveState()
        canvas.setFont(PLAIN, 7)
        canvas.setFillColor(SOFT)
        canvas.drawString(MARGIN, 9 * mm, f"{document.made_by}. Not for diagnosis.")
        canvas.drawRightString(A4[0] - MARGIN, 9 * mm, f"page {template.page}")
        canvas.restoreState()

    template = BaseDocTemplate(
        written,
        pagesize=A4,
        invariant=1,
        title=f"{document.title}: {document.made_of}",
        creator=document.made_by,
        lang="en",
    )
    frame = Frame(MARGIN, 15 * mm, WIDTH, A4[1] - 30 * mm, 0, 0, 0, 0)
    template.addPageTemplates(PageTemplate(frames=[frame], onPage=frame_of_page))
    template.build(list(_story(document)))
    return written.getvalue()


def _story(document: Document) -> Iterator[Flowable]:
    yield Paragraph(escape(document.title), _style(18, bold=True, leading=22))
    yield Paragraph(escape(document.made_of), _style(9, colour=SOFT))
    for section in document.sections:
        if section.printed:
            yield from _section(section)
    left_out = [section.title for section in document.sections if not section.printed]
    if not left_out:
        return
    yield Spacer(1, 4 * mm)
    yield Paragraph(
        escape(f"On the page (report.html) alone: {'; '.join(left_out)}."), _style(8, colour=SOFT)
    )


def _section(section: Section) -> Iterator[Flowable]:
    yield CondPageBreak(60 * mm)
    style = _style(12, bold=True, leading=15)
    style.spaceBefore, style.spaceAfter = 14, 4
    style.keepWithNext = 1
    heading = Paragraph(escape(section.title), style)
    first, *others = (list(_BLOCKS[type(block)](block)) for block in section.blocks)
    if len(first) == 1 and isinstance(first[0], KeepTogether):
        # reportlab keeps a heading with a flowable, not with several that stay together.
        yield KeepTogether([heading, *first[0]._content])
    else:
        yield from (heading, *first)
    for some in others:
        yield from some


def _words(words: Words) -> Iterator[Flowable]:
    if words.tone == "plain":
        yield Paragraph(escape(words.text), _style(8.5, after=4))
        return
    yield _box(Paragraph(escape(words.text), _style(8.5)), words.tone)


def _verdict(verdict: Verdict) -> Iterator[Flowable]:
    colour, _ = TONES[verdict.tone]
    word = verdict.word[:1].upper() + verdict.word[1:]
    yield _box(
        [
            Paragraph(escape(word), _style(17, bold=True, colour=colour, leading=21)),
            Paragraph(escape(verdict.text), _style(9)),
        ],
        verdict.tone,
    )


def _box(inside: Any, tone: str) -> Flowable:  # noqa: ANN401  # one flowable, or several
    colour, pale = TONES[tone]
    box = Grid([[inside]], colWidths=[WIDTH], spaceBefore=3, spaceAfter=5)
    box.setStyle(
        TableStyle(
            [
                ("BACKGROUND", (0, 0), (-1, -1), pale),
                ("LINEBEFORE", (0, 0), (0, -1), 2, colour),
                ("LEFTPADDING", (0, 0), (-1, -1), 8),
                ("TOPPADDING", (0, 0), (-1, -1), 4),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 5),
            ]
        )
    )
    return box


def _plot(plot: Plot) -> Iterator[Flowable]:
    caption = Paragraph(escape(plot.caption), _style(7.5, colour=SOFT, after=8))
    yield KeepTogether([Spacer(1, 6), to_reportlab(plot.drawing, PLOT_WIDTH, PLAIN), caption])


def _pictures(pictures: Pictures) -> Iterator[Flowable]:
    wide = WIDTH / PICTURES_IN_A_ROW - 6
    cells = [
        [
            _image(one.path, wide),
            Paragraph(escape(one.title), _style(7.5, bold=True)),
            Paragraph(escape(one.caption), _style(7.5, colour=SOFT)),
        ]
        for one in pictures.pictures
    ]
    cells += [[]] * (-len(cells) % PICTURES_IN_A_ROW)
    rows = [
        cells[start : start + PICTURES_IN_A_ROW]
        for start in range(0, len(cells), PICTURES_IN_A_ROW)
    ]
    grid = Grid(rows, colWidths=[WIDTH / PICTURES_IN_A_ROW] * PICTURES_IN_A_ROW)
    grid.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("RIGHTPADDING", (0, 0), (-1, -1), 6),
            ]
        )
    )
    yield grid


def _image(path: Path, wide: float) -> Flowable:
    picture = Image(str(path))
    picture.drawHeight *= wide / picture.drawWidth
    picture.drawWidth = wide
    return picture


def _table(table: Table) -> Iterator[Flowable]:
    small = len(table.columns) > 6
    size = 6.8 if small else 7.6
    rows = [
        [
            Paragraph(
                escape(column.title),
                _style(size, bold=True, colour=SOFT, align=TA_RIGHT if column.number else 0),
            )
            for column in table.columns
        ]
    ]
    rows += [
        [_cell(cell, column.number, size) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    grid = Grid(rows, colWidths=_widths(table, size), repeatRows=1, spaceBefore=6, spaceAfter=3)
    grid.setStyle(
        TableStyle(
            [
                ("VALIGN", (0, 0), (-1, 0), "BOTTOM"),
                ("VALIGN", (0, 1), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("RIGHTPADDING", (0, 0), (-1, -1), 7),
                ("RIGHTPADDING", (-1, 0), (-1, -1), 0),
                *(
                    ("LEFTPADDING", (index, 0), (index, -1), AFTER_NUMBER)
                    for index in _after_number(table)
                ),
                ("TOPPADDING", (0, 0), (-1, -1), 2.2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2.8),
                ("LINEBELOW", (0, 0), (-1, 0), 0.6, SOFT),
                ("LINEBELOW", (0, 1), (-1, -1), 0.35, RULE),
            ]
        )
    )
    whole: list[Flowable] = [grid]
    if table.note:
        whole.append(Paragraph(escape(table.note), _style(7, colour=SOFT, after=6)))
    if len(table.rows) <= KEPT_TOGETHER:
        yield KeepTogether(whole)
    else:
        yield from whole


def _cell(cell: Cell | Path | str, number: bool, size: float) -> Paragraph:
    if isinstance(cell, Path):
        return Paragraph("", _style(size))
    if isinstance(cell, str):
        cell = Cell(cell)
    colour = SOFT if cell.text == "not defined" else TONES[cell.tone][0]
    align = TA_RIGHT if number else 0
    text = escape(cell.text)
    if cell.under:
        text += (
            f'<br/><font size="{size - 0.8}" color="{SOFT.hexval()}">{escape(cell.under)}</font>'
        )
    return Paragraph(text, _style(size, colour=colour, align=align))


def _widths(table: Table, size: float) -> list[float]:
    """By the longest text of each column, so far as the page is wide enough."""
    if len(table.columns) == 2:
        return [NAME_SHARE * WIDTH, (1 - NAME_SHARE) * WIDTH]
    wanted = []
    for index, column in enumerate(table.columns):
        texts = [_text(row[index]) for row in table.rows]
        words = [word for text in (*texts, column.title) for word in text.split()]
        longest = max((_long(text, size) for text in texts), default=0.0)
        least = max((_long(word, size) for word in words), default=0.0)
        wanted.append((min(max(longest, least), 0.34 * WIDTH), min(least, 0.34 * WIDTH)))
    for index in _after_number(table):
        wanted[index] = (wanted[index][0] + AFTER_NUMBER, wanted[index][1] + AFTER_NUMBER)
    room = WIDTH - 7 * len(wanted)
    full = sum(one for one, _ in wanted)
    if full <= room:
        spare = (room - full) / len(wanted)
        return [one + spare + 7 for one, _ in wanted]
    least = sum(one for _, one in wanted)
    share = max(0.0, (room - least) / (full - least)) if full > least else 0.0
    widths = [low + share * (high - low) for high, low in wanted]
    scale = min(1.0, room / sum(widths))
    return [one * scale + 7 for one in widths]


def _after_number(table: Table) -> list[int]:
    """Columns of words right of a column of numbers: they would touch."""
    numbers = [column.number for column in table.columns]
    return [index for index in range(1, len(numbers)) if numbers[index - 1] > numbers[index]]


def _text(cell: Cell | Path | str) -> str:
    """The longer line of a cell."""
    if isinstance(cell, Path):
        return ""
    return cell if isinstance(cell, str) else max(cell.text, cell.under, key=len)


def _long(text: str, size: float) -> float:
    return float(pdfmetrics.stringWidth(text, BOLD, size)) + 1


def _style(
    size: float,
    *,
    bold: bool = False,
    colour: Any = INK,  # noqa: ANN401  # reportlab
    leading: float | None = None,
    align: int = 0,
    after: float = 0,
) -> ParagraphStyle:
    return ParagraphStyle(
        "text",
        fontName=BOLD if bold else PLAIN,
        fontSize=size,
        leading=leading or size * 1.38,
        textColor=colour,
        alignment=align,
        spaceAfter=after,
        splitLongWords=1,
    )


@lru_cache(maxsize=1)
def _fonts() -> None:
    pdfmetrics.registerFont(TTFont(PLAIN, str(font_path())))
    pdfmetrics.registerFont(TTFont(BOLD, str(font_path(bold=True))))


_BLOCKS: Final[dict[type[Block], Callable[..., Iterator[Flowable]]]] = {
    Words: _words,
    Verdict: _verdict,
    Plot: _plot,
    Pictures: _pictures,
    Table: _table,
}
