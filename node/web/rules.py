"""Why nothing came, and the rules: both ask `flairnode select`, with the rules of now or others."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import Response

from node.web.accounts import Session
from node.web.app import (
    Administrator,
    Operator,
    Surroundings,
    Viewer,
    changes,
    note,
    page,
    surroundings_of,
)
from node.web.trial import TrialError, Upload, save_selection, selection_text, try_rules

router = APIRouter()

Study = Annotated[str, Form(max_length=128)]
Text = Annotated[str, Form(max_length=100_000)]
Files = Annotated[list[UploadFile] | None, File()]


@router.get("/why")
def show_why(request: Request, session: Viewer) -> Response:
    """The form."""
    return page(request, "why.html", session)


@router.post("/why", dependencies=[Depends(changes)])
async def why(
    request: Request, session: Viewer, study: Study = "", files: Files = None
) -> Response:
    """Which rule refused each series, and what would have to be otherwise."""
    facts = await _tried(surroundings_of(request), None, study, files)
    note(request, session, "why", study=facts["study_instance_uid"])
    return page(request, "why.html", session, facts)


@router.get("/rules")
def show_rules(request: Request, session: Operator) -> Response:
    """The rules of this site, to be tried."""
    return page(request, "rules.html", session, {"text": _text(surroundings_of(request))})


@router.post("/rules/try", dependencies=[Depends(changes)])
async def try_them(
    request: Request, session: Operator, text: Text = "", study: Study = "", files: Files = None
) -> Response:
    """What these rules would say of a study. Nothing is changed."""
    facts = await _tried(surroundings_of(request), text, study, files)
    return page(request, "rules.html", session, facts | {"text": text})


@router.post("/rules/save", dependencies=[Depends(changes)])
def save(request: Request, session: Administrator, text: Text = "") -> Response:
    """Put these rules in force, or say why they cannot be and leave the old ones."""
    node = surroundings_of(request)
    try:
        settings = save_selection(node.config, text)
    except TrialError as error:
        return _told(request, session, {"text": text, "fault": str(error)}, 422)
    node.use_selection(settings.selection)
    note(request, session, "rules-saved")
    return _told(request, session, {"text": _text(node), "saved": True})


def _told(
    request: Request, session: Session, facts: dict[str, Any], status_code: int = 200
) -> Response:
    return page(request, "rules.html", session, facts, status_code=status_code)


def _text(node: Surroundings) -> str:
    return selection_text(node.config) or "[selection]\n"


async def _tried(
    node: Surroundings, text: str | None, study: str, files: list[UploadFile] | None
) -> dict[str, Any]:
    """What came out, or what was wrong."""
    given = [one for one in files or [] if one.filename]
    wanted = study.strip()
    uid = node.overview.study_of(wanted.lower()) or wanted
    facts: dict[str, Any] = {"study": wanted, "study_instance_uid": uid, "told": None, "fault": ""}
    try:
        uploads = [Upload(await one.read()) for one in given]
        facts["told"] = await try_rules(
            node.config, text, study_instance_uid="" if uploads else uid, uploads=uploads
        )
    except TrialError as error:
        facts["fault"] = str(error)
    return facts
