"""For machines: is the process there, is the node ready, and its figures for Prometheus.

No sign-in and no identifier: states, reasons, counts, ages.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest

from node.disk import room
from node.ledger import UNFINISHED
from node.web.app import Surroundings, surroundings_of

router = APIRouter()


@router.get("/healthz")
def healthz() -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
def readyz(request: Request) -> Response:
    """Can it receive and analyse? 503 and the reasons if it cannot."""
    faults = not_ready(surroundings_of(request))
    return JSONResponse({"ready": not faults, "faults": faults}, 503 if faults else 200)


def not_ready(node: Surroundings) -> list[str]:
    """What keeps the node from receiving or analysing; empty: nothing."""
    faults = []
    try:
        node.overview.version()
    except sqlite3.Error:
        faults.append("ledger-unreadable")
    if room(node.settings.node).below_reserve:
        faults.append("disk-reserve")
    workers = node.workers()
    if workers and not any(worker["running"] for worker in workers):
        faults.append("no-worker")
    return faults


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Figures in Prometheus' text format."""
    return Response(
        generate_latest(_collected(surroundings_of(request))), media_type=CONTENT_TYPE_LATEST
    )


def _collected(node: Surroundings) -> CollectorRegistry:
    registry, now = CollectorRegistry(), datetime.now(UTC)
    counts = node.ledger.counts()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"flairnode_{name}", text, labels, registry=registry)

    gauge("instances", "Instances received, ever").set(counts["instances"])
    gauge("conflicts", "Instances re-sent with other content").set(counts["conflicts"])
    series = gauge("series", "Series by state and reason", "state", "reason")
    for state, reason, count in node.overview.reasons():
        series.labels(state, reason).set(count)
    depth = gauge("jobs", "Jobs that are not at an end", "state")
    age = gauge("oldest_job_age_seconds", "Since the oldest of them was made", "state")
    waiting = {one.state: one for one in node.overview.waiting()}
    for state in UNFINISHED:
        one = waiting.get(state)
        depth.labels(state.value).set(0 if one is None else one.count)
        oldest = None if one is None else one.oldest_at
        age.labels(state.value).set(
            0.0 if oldest is None else max(0.0, (now - oldest).total_seconds())
        )
    disk = room(node.settings.node)
    gauge("disk_free_bytes", "Of the disk with the data directory").set(disk.free_bytes)
    gauge("disk_size_bytes", "Of the disk with the data directory").set(disk.total_bytes)
    reserve = gauge("disk_reserve_bytes", "Below this, senders are told to come back")
    reserve.set(disk.reserve_bytes)
    answering = gauge("peer_answers", "Did the peer answer when it was last asked", "peer")
    for peer, answers in node.answering().items():
        answering.labels(peer).set(answers)
    workers = gauge("workers_running", "Worker processes that run")
    workers.set(sum(bool(worker["running"]) for worker in node.workers()))
    if node.tests is not None and node.tests.latest is not None:
        gauge("self_test_passed", "Was the last self-test as it has to be").set(
            not node.tests.fault()
        )
        gauge("self_test_dice", "Dice of the last self-test").set(node.tests.latest.dice or 0.0)
    gauge("ready", "1 when /readyz says so").set(not not_ready(node))
    return registry
