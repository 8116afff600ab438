"""The story of `flairnode demo`, from an empty folder to results that were checked.

Everything is real: two processes that speak DICOM on loopback, the same node as at a site, the
results fetched back from the archive and measured anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from config.settings import Peer
from dicom.attributes import number, text
from dicom.errors import StudyError
from dicom.network.scu import PeerError, StoreResult, store
from dicom.part10 import read_part10
from dicom.series import Series, Study, read_study
from node.archive import ArchiveError, Orthanc
from node.cli import EXIT_DONE, EXIT_FAILED, EXIT_REFUSED, exit_status
from node.demo_site import SENDER_AE_TITLE, DemoError, DemoSite
from node.ledger import ENDS, SeriesRow, SeriesState
from node.outcome import OUTCOME_FILE, JobOutcome, ResultsFolder
from node.selftest import LEAST_DICE, SEED
from pipeline.key_images import banner_strip
from pipeline.overlay import Caption, draw_overlay
from pipeline.phantom import Phantom, synthetic_head
from pipeline.phantom_study import write_study
from pipeline.read_back import VOLUME_TOLERANCE_ML, ReadBack, dice, read_back
from pipeline.results import RESEARCH_BANNER

LONGEST_WAIT_S = 600.0
SEND_ATTEMPTS = 3
PLAIN_WIDTH = 110  # of tables where no terminal says how wide it is


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """What goes to the node."""

    study: Study
    paths: tuple[Path, ...]
    phantom: Phantom | None
    """The truth, unless the study is the user's."""

    @property
    def series(self) -> dict[str, Series]:
        """By Series Instance UID."""
        return {one.series_instance_uid: one for one in self.study.series}


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One result that was fetched back from the archive and held."""

    series: Series
    report: Mapping[str, Any]
    """What the node says of it: the JSON of `flairnode process`."""
    read: ReadBack
    files: tuple[Path, ...]
    picture: Path
    research: bool


def run_demo(arguments: argparse.Namespace) -> int:
    """The whole demo, told as it happens."""
    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else PLAIN_WIDTH, highlight=False)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="flairnode-demo-"))
    try:
        with (
            _ended_by_sigterm(),
            DemoSite(folder, _model(arguments.model), arguments.orthanc) as site,
        ):
            status = _attempt(arguments, site, console)
            console.print(f"\n{time.monotonic() - started:.0f} s in all.")
            if arguments.keep:
                _keep(site, console)
            return status
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attempt(arguments: argparse.Namespace, site: DemoSite, console: Console) -> int:
    try:
        return _demonstrate(arguments, site, console)
    except StudyError as error:
        failure, status = f"{error.reason}: {error}", exit_status(error.outcome)
    except (DemoError, ArchiveError, PeerError) as error:
        failure, status = str(error), EXIT_FAILED
    console.print(f"\nFAILED: {failure}", style="bold red", markup=False)
    if site.log.is_file():
        arguments.output.mkdir(parents=True, exist_ok=True)
        shutil.copy(site.log, arguments.output / "node.log")
        console.print(f"log of the node: {arguments.output / 'node.log'}", markup=False)
    return status


def _demonstrate(arguments: argparse.Namespace, site: DemoSite, console: Console) -> int:
    stages = Stages(console)
    arguments.output.mkdir(parents=True, exist_ok=True)
    sent: Sent | None = None
    if arguments.input is not None:
        with stages("read the study") as stage:
            sent = _user_study(arguments.input, stage)
    with stages("start an archive") as stage:
        stage.note(f"{site.start_archive()}, DICOM port {site.archive.dicom_port}")
    site.launch_node()  # it loads its model while a study is made
    if sent is None:
        with stages("make a synthetic study") as stage:
            sent = _phantom_study(arguments.output, stage)
    with stages("start the node") as stage:
        site.wait_for_node()
        stage.note(f"DICOM port {site.node_port}")
    with stages("store the study in the archive (C-STORE)") as stage:
        _store(site.archive_peer, sent, stage)
    with stages("send the study to the node (C-STORE)") as stage:
        _store(site.node_peer, sent, stage)
    with stages("analyse and deliver") as stage:
        rows = _wait(site, sent, stage)
    with stages("fetch the results from the archive, check them") as stage:
        results = _fetch(site, sent, rows, arguments.output)
        stage.note(f"{sum(len(one.files) for one in results)} objects")
    _print_series(console, sent, rows)
    for one in results:
        _print_findings(console, one, sent.phantom)
    return _verdict(rows, results, sent, console)


def _model(name: str) -> str:
    """A folder by its full path, since the node is a process of its own."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: node and archive are stopped, nothing is left."""

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# The study ---------------------------------------------------------------------------------------


def _phantom_study(output: Path, stage: Stage) -> Sent:
    phantom = synthetic_head(SEED)
    paths = write_study(phantom, output / "study")
    sent = Sent(read_study(output / "study", files=paths), paths, phantom)
    stage.note(
        f"{len(sent.study.series)} series, {len(paths)} images, "
        f"{len(phantom.planted)} lesions of {phantom.lesions_ml:.1f} ml"
    )
    return sent


def _user_study(folder: Path, stage: Stage) -> Sent:
    study = read_study(folder)
    paths = tuple(instance.path for one in study.series for instance in one.instances)
    left_out = f", {len(study.unreadable)} files are unreadable" if study.unreadable else ""
    stage.note(f"{len(study.series)} series, {len(paths)} objects{left_out}")
    return Sent(study, paths, None)


def _store(peer: Peer, sent: Sent, stage: Stage) -> None:
    began = time.monotonic()
    left: Sequence[Path] = sent.paths
    refused: list[StoreResult] = []
    for _ in range(SEND_ATTEMPTS):  # as any sender does when an association breaks
        try:
            answers = store(peer, left, calling_ae_title=SENDER_AE_TITLE)
        except ValueError as error:  # a file without file meta information cannot be sent as it is
            raise DemoError(str(error)) from error
        refused = [answer for answer in answers if not answer.stored]
        if not refused:
            stage.note(f"{len(sent.paths) / (time.monotonic() - began):.0f} objects a second")
            return
        left = [answer.path for answer in refused]
    raise DemoError(
        f"{peer.name} did not take {len(left)} of {len(sent.paths)} objects: {refused[0].message}"
    )


def _wait(site: DemoSite, sent: Sent, stage: Stage) -> list[SeriesRow]:
    """Until every series that was sent has come to an end; the series as the ledger has them."""
    wanted = {
        uid: {instance.sop_instance_uid for instance in series.instances}
        for uid, series in sent.series.items()
    }
    deadline = time.monotonic() + LONGEST_WAIT_S
    with site.ledger() as ledger:
        while True:
            site.require_node()
            rows = [row for row in ledger.all_series() if row.series_instance_uid in wanted]
            counts = Counter(row.state.value for row in rows)
            stage.progress(", ".join(f"{n} {state}" for state, n in sorted(counts.items())))
            whole = {row.series_instance_uid: row.instances for row in rows} == {
                uid: len(uids) for uid, uids in wanted.items()
            }
            if whole and all(row.state in ENDS for row in rows):
                return rows
            if time.monotonic() > deadline:
                raise DemoError(f"not at an end after {LONGEST_WAIT_S:.0f} s: {dict(counts)}")
            time.sleep(0.1)


# The results -------------------------------------------------------------------------------------


def _fetch(
    site: DemoSite, sent: Sent, rows: Sequence[SeriesRow], output: Path
) -> tuple[Result, ...]:
    """Every delivered result, as the archive holds it, checked; nothing else may be there."""
    held = site.archive.sop_instance_uids()
    folder = ResultsFolder(site.data_dir)
    results: list[Result] = []
    expected = [one.sop_instance_uid for s in sent.study.series for one in s.instances]
    for row in rows:
        outcome = folder.read(row.job_id) if row.job_id else None
        if row.state is not SeriesState.DELIVERED:
            if outcome is not None:  # the note that says why a FLAIR was not analysed
                expected += [one.sop_instance_uid for one in outcome.objects]
            continue
        if outcome is None:
            raise DemoError("a series is delivered, but its result is not on disk")
        expected += [one.sop_instance_uid for one in outcome.objects]
        name = "" if not results else f"{len(results) + 1}_"
        results.append(_fetch_one(site, sent, row, outcome, held, output, name))
    if sorted(held) != sorted(set(expected)):
        raise DemoError(
            f"the archive holds {len(held)} objects ({len(set(held))} different), "
            f"{len(set(expected))} were expected"
        )
    return tuple(results)


def _fetch_one(
    site: DemoSite,
    sent: Sent,
    row: SeriesRow,
    outcome: JobOutcome,
    held: Sequence[str],
    output: Path,
    name: str,
) -> Result:
    stored = [one.path.read_bytes() for one in outcome.objects]
    places = {str(read_part10(content).SeriesInstanceUID) for content in stored}
    contents = [content for place in sorted(places) for content in site.archive.files_of(place)]
    series = sent.series[row.series_instance_uid]
    read = read_back(series, contents, stored, frozenset(held))
    report = json.loads((outcome.objects[0].path.parent / OUTCOME_FILE).read_bytes())["report"]
    _same_numbers(report["findings"], read)
    names = {one.sop_instance_uid: one.path.name for one in outcome.objects}
    files = []
    for content in contents:
        files.append(output / f"{name}{names[text(read_part10(content), 'SOPInstanceUID')]}")
        files[-1].write_bytes(content)
    files += _save_readable(read, outcome, output, name)
    (output / f"{name}result.json").write_text(json.dumps(report, indent=1))
    picture = output / f"{name}overlay.png"
    _draw(picture, read, report, outcome, sent.phantom)
    return Result(series, report, read, tuple(files), picture, outcome.research)


def _save_readable(read: ReadBack, outcome: JobOutcome, output: Path, name: str) -> Iterator[Path]:
    """The key images and the PDF as files that any program opens, from what the archive holds."""
    if not read.pictures or read.pdf is None:
        raise DemoError("the archive holds no key image or no PDF of a result")
    strip = banner_strip(RESEARCH_BANNER)
    for place, pixels in enumerate(read.pictures, start=1):
        if np.array_equal(pixels[: len(strip)], strip) != outcome.research:
            raise DemoError(f"key image {place} has a wrong banner")
        path = output / f"{name}key-image-{place}.png"
        Image.fromarray(pixels).save(path)
        yield path
    path = output / f"{name}report.pdf"
    path.write_bytes(read.pdf)
    yield path


def _same_numbers(findings: Mapping[str, Any], read: ReadBack) -> None:
    reported = [float(lesion["volume_ml"]) for lesion in findings["lesions"]]
    if len(reported) != len(read.volumes_ml) or any(
        abs(one - other) > VOLUME_TOLERANCE_ML
        for one, other in zip(reported, read.volumes_ml, strict=True)
    ):
        raise DemoError("the volumes that the node reports are not those of the Segmentation")


def _draw(
    path: Path,
    read: ReadBack,
    report: Mapping[str, Any],
    outcome: JobOutcome,
    phantom: Phantom | None,
) -> None:
    findings, model = report["findings"], report["model"]
    notes = [
        f"model {model['name']} {model['version']}",
        f"quality {report['quality']['verdict']}",
        "software result, not verified",
    ]
    if phantom is not None:
        notes.append("synthetic head; dotted: the known truth")
    title = f"{findings['lesion_count']} lesions, {findings['total_volume_ml']:.2f} ml"
    caption = Caption(title, tuple(notes), outcome.research)
    truth = None if phantom is None else phantom.lesions
    draw_overlay(path, read.volume, read.labels, caption, truth)


# What is said ------------------------------------------------------------------------------------


class Stage:
    """One line of the demo: what is done, and what came of it."""

    def __init__(self, name: str, console: Console, status: Status | None) -> None:
        self.name = name
        self.outcome = ""
        self._console = console
        self._status = status
        self._said = ""

    def note(self, text: str) -> None:
        """What came of it: stands at the end of the line."""
        self.outcome = text

    def progress(self, text: str) -> None:
        """Where it stands now."""
        if text == self._said:
            return
        self._said = text
        if self._status is not None:
            self._status.update(f"{self.name}: {text}")
        else:
            self._console.print(f"      {text}", markup=False)


class Stages:
    """Stages one after another: a spinner on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def __call__(self, name: str) -> Iterator[Stage]:
        """Do one stage."""
        began = time.monotonic()
        if self._console.is_terminal:
            with self._console.status(name) as status:
                stage = Stage(name, self._console, status)
                yield stage
        else:
            self._console.print(f"..    {name}", markup=False)
            stage = Stage(name, self._console, None)
            yield stage
        outcome = f": {stage.outcome}" if stage.outcome else ""
        seconds = time.monotonic() - began
        self._console.print(f"ok    {name}{outcome} ({seconds:.1f} s)", markup=False)


def _print_series(console: Console, sent: Sent, rows: Sequence[SeriesRow]) -> None:
    table = Table(title="Every series and what became of it", box=SIMPLE, title_justify="left")
    for column in ("no.", "description", "images", "end", "reason"):
        table.add_column(column, justify="right" if column in ("no.", "images") else "left")
    ordered = sorted(
        rows,
        key=lambda row: number(sent.series[row.series_instance_uid].header, "SeriesNumber") or 0,
    )
    for row in ordered:
        header = sent.series[row.series_instance_uid].header
        table.add_row(
            escape(text(header, "SeriesNumber")),
            escape(text(header, "SeriesDescription")),
            str(row.instances),
            row.state.value,
            escape(f"{row.reason}: {row.explanation}" if row.explanation else row.reason),
        )
    console.print()
    console.print(table)


def _print_findings(console: Console, result: Result, phantom: Phantom | None) -> None:
    findings, quality, model = (result.report[key] for key in ("findings", "quality", "model"))
    title = (
        f"{findings['lesion_count']} lesions, {findings['total_volume_ml']:.2f} ml, "
        f"model {model['name']} {model['version']}"
    )
    table = Table(title=escape(title), box=SIMPLE, title_justify="left")
    for column in ("lesion", "ml", "long axis mm", "slices", "probability"):
        table.add_column(column, justify="right")
    for lesion in findings["lesions"]:
        first, last = lesion["slices"]
        table.add_row(
            str(lesion["label"]),
            f"{lesion['volume_ml']:.3f}",
            f"{lesion['long_axis_mm']:.1f}",
            str(first) if first == last else f"{first}-{last}",
            f"{lesion['mean_probability']:.2f}",
        )
    console.print(table)
    console.print(f"quality: {quality['verdict']}", markup=False)
    for flag in quality["flags"]:
        console.print(f"  {flag['severity']}: {flag['code']}: {flag['message']}", markup=False)
    if phantom is not None:
        console.print(
            f"Dice against the known truth of the synthetic head: {_dice(result, phantom):.2f} "
            f"(truth {phantom.lesions_ml:.2f} ml). It shows that the node works; it says nothing "
            "of patients.",
            markup=False,
        )
    for path in sorted((*result.files, result.picture)):
        console.print(f"  {path}", markup=False)
    if result.research:
        console.print(RESEARCH_BANNER, style="bold yellow")


def _dice(result: Result, phantom: Phantom) -> float:
    return dice(result.read.labels > 0, phantom.lesions)


def _verdict(
    rows: Sequence[SeriesRow], results: Sequence[Result], sent: Sent, console: Console
) -> int:
    """Did all of it hold?"""
    bad = [row for row in rows if row.state in (SeriesState.HELD, SeriesState.FAILED)]
    if bad:
        raise DemoError(f"{len(bad)} series are held or failed: {bad[0].reason}")
    if not results:
        refused = [row for row in rows if row.state is SeriesState.NOT_ANALYSED]
        why = refused[0].reason if refused else "no series is a FLAIR of the head"
        console.print(f"\nNothing was analysed: {why}.", markup=False)
        return EXIT_REFUSED
    if sent.phantom is not None and _dice(results[0], sent.phantom) < LEAST_DICE:
        raise DemoError(
            f"Dice {_dice(results[0], sent.phantom):.2f} against the known lesions: "
            f"at least {LEAST_DICE} is expected of any model that works"
        )
    console.print(
        "\nAll held: sent, analysed, delivered, found by query, fetched back, and equal in "
        "identity, references, voxels and numbers.",
        markup=False,
    )
    return EXIT_DONE


def _keep(site: DemoSite, console: Console) -> None:
    archive = site.archive
    lines = [
        "",
        "Node and archive stay until Ctrl-C, on this machine alone (127.0.0.1).",
        f"node     {site.node_peer.ae_title}, DICOM port {site.node_port}",
        f"archive  {archive.ae_title}, DICOM port {archive.dicom_port}",
    ]
    if isinstance(archive, Orthanc):
        lines.append(f"         {archive.url}, user {archive.user}, password {archive.password}")
    lines += [
        f"settings {site.config}",
        f"log      {site.log}",
        "send it another study:",
        f"  dcmsend -aet {SENDER_AE_TITLE} -aec {site.node_peer.ae_title} --scan-directories "
        f"--recurse 127.0.0.1 {site.node_port} FOLDER",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    try:
        while True:
            site.require_node()
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("stopping")
