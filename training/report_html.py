"""The report as one page: no file beside it, no network, no script but the sorting of tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Final

from PIL import Image

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
from training.drawing import PAPER, to_svg

THUMBNAIL: Final = 72  # pixels, the longer side
DARK: Final = {
    "axis": 0x9FB0BF,
    "grid": 0x2A343E,
    "one": 0x6DB3F2,
    "two": 0xF0A94B,
    "three": 0x7CC47F,
    "four": 0xC79BD9,
    "faint": 0x6B7885,
    "good": 0x6CC28E,
    "bad": 0xF2857B,
    "ink": 0xE6ECF1,
}
"""The colours of the drawings on a dark screen."""

STYLE: Final = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b2733;--soft:#5b6875;--rule:#d9dfe5;
--pale:#f4f7f9;--good:#2e7d4f;--goodp:#eaf5ee;--caution:#9a5b00;--cautionp:#fff5e0;--bad:#b3261e;--badp:#fdecea;
--link:#1f5f99;LIGHT}
@media screen and (prefers-color-scheme:dark){:root{--page:#12181e;--ink:#e6ecf1;--soft:#9fb0bf;
--rule:#2e3943;--pale:#1a222a;--good:#6cc28e;--goodp:#16291f;--caution:#f0b45b;--cautionp:#2b2212;
--bad:#f2857b;--badp:#2e1a18;--link:#6db3f2;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI","Helvetica Neue",Arial,"DejaVu Sans",sans-serif}
main{max-width:64rem;margin:0 auto;padding:2.5rem 1.5rem 4rem}
header{border-bottom:1px solid var(--rule);padding-bottom:1.2rem;margin-bottom:1.5rem}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 .3rem;font-weight:650}
header p{margin:0;color:var(--soft)}
nav{font-size:.87rem;line-height:1.9;color:var(--soft);margin-bottom:1rem}
nav a{color:var(--link);text-decoration:none;white-space:nowrap;margin-right:1.1rem}
nav a:hover{text-decoration:underline}
section{margin-top:2.6rem}
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .8rem;font-weight:650;letter-spacing:-.005em}
p{margin:.6rem 0;max-width:48rem;overflow-wrap:anywhere}
.box{border-left:3px solid;padding:.55rem .9rem;border-radius:0 4px 4px 0;max-width:none}
.good{color:var(--good)}.caution{color:var(--caution)}.bad{color:var(--bad)}
.box.good{background:var(--goodp);border-color:var(--good);color:var(--ink)}
.box.caution{background:var(--cautionp);border-color:var(--caution);color:var(--ink)}
.box.bad{background:var(--badp);border-color:var(--bad);color:var(--ink)}
.verdict{padding:1.1rem 1.3rem;border-radius:6px;margin:.4rem 0 1.2rem}
.verdict.good{background:var(--goodp)}.verdict.caution{background:var(--cautionp)}
.verdict.bad{background:var(--badp)}
.verdict b{display:block;font-size:1.7rem;line-height:1.2;font-weight:650;margin-bottom:.2rem}
.verdict b::first-letter{text-transform:uppercase}
.verdict span{color:var(--ink)}
.wide{overflow-x:auto;margin:1.1rem 0 .3rem}
table{border-collapse:collapse;width:100%;font-size:.86rem;line-height:1.4;
font-variant-numeric:tabular-nums lining-nums}
th{color:var(--soft);font-weight:600;text-align:left;vertical-align:bottom;font-size:.8rem;
border-bottom:1px solid var(--soft)}
th,td{padding:.36rem .7rem .36rem 0}
th:last-child,td:last-child{padding-right:.1rem}
td{border-bottom:1px solid var(--rule);vertical-align:top}
th.n,td.n{text-align:right}
td.n{white-space:nowrap}
th.n+th:not(.n),td.n+td:not(.n){padding-left:.9rem}
td small{display:block;color:var(--soft);white-space:nowrap}
td:first-child{min-width:5.2rem}
.cases td:first-child{min-width:0}
td.undefined{color:var(--soft)}
td img{display:block;height:3rem;width:auto;border-radius:2px}
.cases td{vertical-align:middle}
.note{color:var(--soft);font-size:.82rem;line-height:1.45;margin:.4rem 0 1.3rem}
th button{all:unset;cursor:pointer}
th button:hover{color:var(--link)}
th button:focus-visible{outline:2px solid var(--link);outline-offset:2px}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
figure{margin:1.3rem 0}
figure svg{display:block;width:100%;max-width:46rem;height:auto;
font-family:inherit;font-variant-numeric:tabular-nums}
figcaption{color:var(--soft);font-size:.82rem;line-height:1.45;margin-top:.4rem;max-width:46rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(11.5rem,1fr));gap:1.2rem;
margin:1rem 0}
.pictures figure{margin:0}
.pictures img{width:100%;display:block;border-radius:4px;background:#000}
.pictures b{color:var(--ink);font-weight:600;display:block}
.l{fill:none;stroke-linejoin:round;stroke-linecap:round}.d{stroke:none;fill-opacity:.85}
ROLES
footer{margin-top:3rem;border-top:1px solid var(--rule);padding-top:.8rem;color:var(--soft);
font-size:.82rem}
@page{size:A4;margin:15mm}
@media print{html{font-size:11.5px}body{font-size:8.6pt}
main{max-width:none;padding:0}nav{display:none}
section{margin-top:1.4rem}h2{break-after:avoid}figure,.verdict,.box,tr{break-inside:avoid}
thead{display:table-header-group}.wide{overflow:visible}table{font-size:7.6pt}th{font-size:7.2pt}
figure svg{max-width:30rem}.pictures{grid-template-columns:repeat(4,1fr)}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
SORTING: Final = """
for(const head of document.querySelectorAll("th button"))head.addEventListener("click",()=>{
const th=head.parentElement,body=th.closest("table").tBodies[0],column=th.cellIndex;
const down=th.getAttribute("aria-sort")==="ascending";
for(const other of th.parentElement.children)other.removeAttribute("aria-sort");
th.setAttribute("aria-sort",down?"descending":"ascending");
const key=row=>{const cell=row.cells[column];return cell.dataset.v??cell.textContent};
const empty=value=>value===""||value==="-";
body.append(...[...body.rows].sort((one,other)=>{
const a=key(one),b=key(other);if(empty(a)||empty(b))return empty(a)-empty(b);
const by=isNaN(a)||isNaN(b)?a.localeCompare(b,"en"):a-b;return down?-by:by}))});
"""


def to_html(document: Document) -> str:
    """The page."""
    return "\n".join(_page(document))


def _page(document: Document) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{escape(document.title)}: {escape(document.made_of)}</title>"
    yield f"<style>{_style()}</style>\n</head>\n<body>\n<main>"
    yield f"<header><h1>{escape(document.title)}</h1><p>{escape(document.made_of)}</p></header>"
    links = (
        f'<a href="#s{index}">{escape(section.title)}</a>'
        for index, section in enumerate(document.sections)
    )
    yield f"<nav>{' '.join(links)}</nav>"
    for index, section in enumerate(document.sections):
        yield from _section(index, section)
    yield f"<footer>{escape(document.made_by)}. Not for diagnosis.</footer>"
    yield f"</main>\n<script>{SORTING}</script>\n</body>\n</html>\n"


def _style() -> str:
    light = ";".join(f"--{role}x:#{colour:06x}" for role, colour in PAPER.items())
    dark = ";".join(f"--{role}x:#{colour:06x}" for role, colour in DARK.items())
    roles = "".join(
        f".l.{role}{{stroke:var(--{role}x)}}.d.{role},.t.{role}{{fill:var(--{role}x)}}"
        for role in PAPER
    )
    return STYLE.replace("LIGHT", light).replace("DARK", dark).replace("ROLES", roles)


def _section(index: int, section: Section) -> Iterator[str]:
    yield f'<section id="s{index}"><h2>{escape(section.title)}</h2>'
    for block in section.blocks:
        yield from _BLOCKS[type(block)](block)
    yield "</section>"


def _words(words: Words) -> Iterator[str]:
    kind = "" if words.tone == "plain" else f' class="box {words.tone}"'
    yield f"<p{kind}>{escape(words.text)}</p>"


def _verdict(verdict: Verdict) -> Iterator[str]:
    yield (
        f'<div class="verdict {verdict.tone}"><b class="{verdict.tone}">{escape(verdict.word)}</b>'
        f"<span>{escape(verdict.text)}</span></div>"
    )


def _plot(plot: Plot) -> Iterator[str]:
    yield (
        f"<figure>{to_svg(plot.drawing)}<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _pictures(pictures: Pictures) -> Iterator[str]:
    yield '<div class="pictures">'
    for one in pictures.pictures:
        yield (
            f'<figure><img src="{_data(one.path.read_bytes())}" alt="{escape(one.title)}">'
            f"<figcaption><b>{escape(one.title)}</b>{escape(one.caption)}</figcaption></figure>"
        )
    yield "</div>"


def _table(table: Table) -> Iterator[str]:
    yield f'<div class="wide"><table class="{escape(table.name)}"><thead><tr>'
    for column in table.columns:
        kind = ' class="n"' if column.number else ""
        title = escape(column.title)
        if table.sortable and title:
            title = f'<button type="button">{title}</button>'
        yield f'<th scope="col"{kind}>{title}</th>'
    yield "</tr></thead><tbody>"
    for row in table.rows:
        cells = (
            _cell(cell, column.number) for cell, column in zip(row, table.columns, strict=True)
        )
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>'


def _cell(cell: Cell | Path | str, number: bool) -> str:
    if isinstance(cell, Path):
        return f'<td><img src="{_data(_thumbnail(cell))}" alt=""></td>'
    if isinstance(cell, str):
        cell = Cell(cell)
    kinds = [
        *(["n"] if number else []),
        *(["undefined"] if cell.text == "not defined" else []),
        *([cell.tone] if cell.tone != "plain" else []),
    ]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    order = "" if cell.order is None else f' data-v="{cell.order:.6g}"'
    if cell.order is None and cell.text == "not defined":
        order = ' data-v=""'
    under = f"<small>{escape(cell.under)}</small>" if cell.under else ""
    return f"<td{kind}{order}>{escape(cell.text)}{under}</td>"


def _thumbnail(path: Path) -> bytes:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    written = io.BytesIO()
    small.quantize(48).save(written, "PNG", optimize=True)
    return written.getvalue()


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


_BLOCKS: Final[dict[type[Block], Callable[..., Iterator[str]]]] = {
    Words: _words,
    Verdict: _verdict,
    Plot: _plot,
    Pictures: _pictures,
    Table: _table,
}
