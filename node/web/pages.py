"""The pages: what is running now, the studies, and one study."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from node.advice import advice
from node.disk import room
from node.ledger import UNFINISHED, Job, SeriesRow, SeriesState, UnknownJobError
from node.outcome import ResultFile
from node.pause import PauseSwitch
from node.web.accounts import Session
from node.web.app import Operator, Surroundings, Viewer, note, page, surroundings_of
from node.web.health import not_ready

router = APIRouter()

PREVIEW_FILE: Final = "preview.zip"  # pipeline.preview, which the service does not import: pixels
STUDIES_ON_A_PAGE = 50
LATEST = 8
LOOK_EVERY_S = 1.0
KEEP_ALIVE_S = 15.0


@router.get("/")
def now(request: Request, session: Viewer) -> Response:
    """What is running, what waits, what came last, and whether everything is well."""
    return page(request, "now.html", session, _now(surroundings_of(request)))


@router.get("/parts/now")
def now_part(request: Request, session: Viewer) -> Response:
    """The changing part of it."""
    return page(request, "now_part.html", session, _now(surroundings_of(request)))


def _now(node: Surroundings) -> dict[str, Any]:
    data_dir = node.settings.node.data_dir
    return {
        "faults": not_ready(node),
        "waiting": node.overview.waiting(),
        "running": node.overview.studies(
            states=(SeriesState.RUNNING, SeriesState.DELIVERING), count=LATEST
        ).lines,
        "attention": node.overview.studies(
            states=(SeriesState.FAILED, SeriesState.HELD), count=LATEST
        ),
        "latest": node.overview.studies(count=LATEST).lines,
        "peers": sorted(node.answering().items()),
        "workers": node.workers(),
        "disk": room(node.settings.node),
        "model": node.settings.pipeline.model,
        "device": node.settings.pipeline.device,
        "tested": node.tests.latest if node.tests is not None else None,
        "paused": PauseSwitch(data_dir).since(),
        "reasons": [
            (reason, count)
            for state, reason, count in node.overview.reasons()
            if state in (SeriesState.FAILED, SeriesState.HELD) and count > 1
        ],
        "test_fault": node.tests.fault() if node.tests is not None else "",
    }


@router.get("/studies")
def studies(
    request: Request,
    session: Viewer,
    state: str = "",
    tag: Annotated[str, Query(max_length=64)] = "",
    reason: Annotated[str, Query(max_length=64)] = "",
    first: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """All studies, or those that were looked for."""
    node = surroundings_of(request)
    wanted = [SeriesState(state)] if state in set(SeriesState) else []
    found = node.overview.studies(
        states=wanted,
        tag=tag.strip().lower(),
        reason=reason,
        first=first,
        count=STUDIES_ON_A_PAGE,
    )
    facts = {
        "found": found,
        "state": state,
        "tag": tag,
        "reason": reason,
        "reasons": sorted({one for _, one, _ in node.overview.reasons() if one}),
        "size": STUDIES_ON_A_PAGE,
    }
    part = request.headers.get("HX-Target") == "found"
    return page(request, "studies_part.html" if part else "studies.html", session, facts)


@router.get("/studies/{tag}")
def study(request: Request, session: Viewer, tag: str) -> Response:
    """One study: its series, their jobs, and everything that happened to them."""
    return page(request, "study.html", session, study_facts(surroundings_of(request), tag))


@router.get("/studies/{tag}/jobs/{job_id}")
def result(
    request: Request, session: Viewer, tag: str, job_id: str, at: Annotated[int, Query(ge=0)] = 0
) -> Response:
    """One result: its slices with the lesions laid over them, its findings, its objects.

    `at` is the slice, counted from 1; 0 is the one with the largest lesion area.
    """
    node = surroundings_of(request)
    job = _job_of(node, tag, job_id)
    facts = _job_facts(node, job)
    shown = read_preview(node.results.of(job.job_id))
    return page(
        request,
        "result.html",
        session,
        facts | {"tag": tag, "shown": shown, "at": _slice(at, shown, facts["report"])},
    )


@router.get("/studies/{tag}/jobs/{job_id}/{layer}/{index}.png")
def picture(
    request: Request,
    session: Viewer,  # its check
    tag: str,
    job_id: str,
    layer: Literal["slice", "lesions"],
    index: int,
) -> Response:
    """One slice, or the lesions on it."""
    node = surroundings_of(request)
    job = _job_of(node, tag, job_id)
    try:
        with zipfile.ZipFile(node.results.of(job.job_id) / PREVIEW_FILE) as file:
            content = file.read(f"{layer}/{index:03}.png")
    except (OSError, KeyError, zipfile.BadZipFile):
        raise HTTPException(404) from None
    return Response(content, media_type="image/png", headers={"Cache-Control": "max-age=300"})


@router.get("/studies/{tag}/jobs/{job_id}/objects/{sop_instance_uid}")
def download(
    request: Request, session: Operator, tag: str, job_id: str, sop_instance_uid: str
) -> Response:
    """One object of a result as it was built. It names the patient, so it is noted who took it."""
    node = surroundings_of(request)
    job = _job_of(node, tag, job_id)
    objects = {one.sop_instance_uid: one for one in _objects(node, job)}
    found = objects.get(sop_instance_uid)
    if found is None or not found.path.is_file():
        raise HTTPException(404)
    note(request, session, "download", job=job.job_id, object=sop_instance_uid)
    return FileResponse(
        found.path, media_type="application/dicom", filename=f"{tag}-{found.path.name}"
    )


def _job_of(node: Surroundings, tag: str, job_id: str) -> Job:
    """A job of that study.

    Raises:
        HTTPException: 404, there is none.
    """
    try:
        job = node.ledger.job(job_id)
    except UnknownJobError:
        raise HTTPException(404) from None
    if node.overview.study_of(tag) != job.study_instance_uid:
        raise HTTPException(404)
    return job


def read_preview(folder: Path) -> dict[str, Any] | None:
    """What `pipeline.preview` says of its pictures; None where there are none."""
    try:
        with zipfile.ZipFile(folder / PREVIEW_FILE) as file:
            content: dict[str, Any] = json.loads(file.read("index.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return content


def _slice(at: int, shown: dict[str, Any] | None, report: Mapping[str, Any] | None) -> int:
    """The slice to begin with, from 0."""
    count = shown["slices"] if shown is not None else 1
    if at:
        return int(min(at, count)) - 1
    lesions = ((report or {}).get("findings") or {}).get("lesions") or []
    largest = max(lesions, key=lambda one: float(one["volume_ml"]), default=None)
    return count // 2 if largest is None else int(min(largest["largest_slice"], count)) - 1


def _objects(node: Surroundings, job: Job) -> tuple[ResultFile, ...]:
    found = node.results.read(job.job_id)
    return () if found is None else found.objects


def study_facts(node: Surroundings, tag: str) -> dict[str, Any]:
    """Everything a page says of one study.

    Raises:
        HTTPException: 404, no study has that tag.
    """
    uid = node.overview.study_of(tag)
    if uid is None:
        raise HTTPException(404)
    return {
        "tag": tag,
        "study_instance_uid": uid,
        "series": [_series_facts(node, row) for row in node.ledger.series_of(uid)],
    }


def _series_facts(node: Surroundings, row: SeriesRow) -> dict[str, Any]:
    decision = next(iter(node.ledger.decisions_of(row.series_instance_uid)), None)
    return {
        "row": row,
        "advice": advice(row),
        "can_retry": row.state in (SeriesState.FAILED, SeriesState.HELD, SeriesState.NOT_ANALYSED),
        "can_cancel": row.state in UNFINISHED,
        "decision": decision,
        "history": node.ledger.history(row.series_instance_uid),
        "jobs": [_job_facts(node, job) for job in node.ledger.jobs_of(row.series_instance_uid)],
    }


def _job_facts(node: Surroundings, job: Job) -> dict[str, Any]:
    objects = _objects(node, job)
    return {
        "job": job,
        "report": node.results.report(job.job_id) if objects else None,
        "objects": objects,
        "deliveries": node.ledger.deliveries(job.job_id),
    }


@router.get("/events")
async def events(request: Request, session: Viewer) -> Response:  # its check
    """Server-sent events: `changed` whenever something happened in the ledger."""
    return StreamingResponse(_told(request, session), media_type="text/event-stream")


async def _told(request: Request, session: Session) -> AsyncIterator[str]:
    node, last, silent_s = surroundings_of(request), "", 0.0
    yield f": for {session.role.value}\n\n"
    while not await request.is_disconnected():
        version = await asyncio.to_thread(node.overview.version)
        if version != last:
            yield "event: changed\ndata: \n\n"
            last, silent_s = version, 0.0
        elif silent_s >= KEEP_ALIVE_S:
            yield ": still here\n\n"
            silent_s = 0.0
        await asyncio.sleep(LOOK_EVERY_S)
        silent_s += LOOK_EVERY_S
