"""What an operator does from the page: as `flairnode jobs`, and as much in the audit trail."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse, Response
from starlette.exceptions import HTTPException

from node.ledger import RetryRefusedError, SeriesRow
from node.pause import PauseSwitch
from node.retry import retry_all, retry_series
from node.web.app import Operator, Surroundings, changes, note, surroundings_of

router = APIRouter(dependencies=[Depends(changes)])


@router.post("/studies/{tag}/series/{series_instance_uid}/retry")
def retry(request: Request, session: Operator, tag: str, series_instance_uid: str) -> Response:
    """Try the job of a series again, or decide it once more."""
    node = surroundings_of(request)
    row = _series(node, tag, series_instance_uid)
    try:
        job = retry_series(node.ledger, row)
    except RetryRefusedError as error:
        raise HTTPException(409, str(error)) from None
    note(request, session, "retry", series=series_instance_uid, job=job.job_id if job else "")
    return _back(tag)


@router.post("/studies/{tag}/series/{series_instance_uid}/cancel")
def cancel(request: Request, session: Operator, tag: str, series_instance_uid: str) -> Response:
    """End the job of a series; what was sent stays where it is."""
    node = surroundings_of(request)
    row = _series(node, tag, series_instance_uid)
    if not row.job_id:
        raise HTTPException(409, "The series has no job.")
    try:
        node.ledger.cancel(row.job_id, f"by {session.name}")
    except RetryRefusedError as error:
        raise HTTPException(409, str(error)) from None
    note(request, session, "cancel", series=series_instance_uid, job=row.job_id)
    return _back(tag)


@router.post("/retry-all")
def retry_many(
    request: Request, session: Operator, reason: Annotated[str, Form(max_length=64)]
) -> Response:
    """Try everything again that ended for one reason."""
    node = surroundings_of(request)
    retry_all(node.settings, node.ledger, reason=reason, user=session.name)
    return RedirectResponse("/", status_code=303)


@router.post("/pause")
def pause(request: Request, session: Operator) -> Response:
    """Begin no more analyses."""
    if PauseSwitch(surroundings_of(request).settings.node.data_dir).turn_on(session.name):
        note(request, session, "pause")
    return RedirectResponse("/", status_code=303)


@router.post("/resume")
def resume(request: Request, session: Operator) -> Response:
    """Go on."""
    if PauseSwitch(surroundings_of(request).settings.node.data_dir).turn_off():
        note(request, session, "resume")
    return RedirectResponse("/", status_code=303)


def _series(node: Surroundings, tag: str, series_instance_uid: str) -> SeriesRow:
    row = node.ledger.series(series_instance_uid)
    if row is None or node.overview.study_of(tag) != row.study_instance_uid:
        raise HTTPException(404)
    return row


def _back(tag: str) -> Response:
    return RedirectResponse(f"/studies/{tag}", status_code=303)
