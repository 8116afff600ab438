"""From the wire to a job: spool, ledger, quiet period, completeness, selection.

A sender is told 0x0000 only when the object is written, synchronised and recorded; its final name
and its row are made again from the spool if a power cut takes them. From there on every series
comes to a visible end, with its reason.
"""

from __future__ import annotations

import ipaddress
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from config.selection import SelectionSettings
from config.settings import Settings
from dicom.errors import Outcome, StudyError
from dicom.identity import differing_patient
from dicom.network.scp import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH,
    OUT_OF_RESOURCES,
    SUCCESS,
    Admission,
    Networks,
    ReceivedObject,
    Refusal,
)
from dicom.series import read_study
from node.audit import Audit, AuditEvent
from node.completeness import (
    INCOMPLETE,
    NOT_ASKED,
    NOTHING_LISTED,
    Listing,
    PeerHolding,
    QuietClock,
    Sources,
    Verdict,
    depends_on_slices,
    query_peer,
)
from node.delivery import SETTLED
from node.disk import Reserve
from node.ledger import (
    CONFLICTING,
    MISSING_FILES,
    MIXED_PATIENT,
    UNFINISHED,
    Job,
    Ledger,
    ReceivedInstance,
    Recorded,
    SeriesDecision,
    SeriesRow,
    SeriesState,
)
from node.refusals import Refusals
from node.spool import (
    Identity,
    RefusedObjectError,
    Spool,
    TornFileError,
    dataset_digest,
    identify,
    same_content,
)
from pipeline.selection import choose

__all__ = ["Intake", "Ledger", "SeriesState", "admission"]

log = structlog.get_logger(__name__)

UNREADABLE = "unreadable"
_STATUS_OF_REFUSAL = {"does-not-match": DOES_NOT_MATCH}
_LOCKS = 64  # two copies of one instance wait for each other; others rarely do


def admission(settings: Settings) -> Admission:
    """Who may send, from the settings: by default the configured peers, from this machine."""
    named = [peer.ae_title for peer in settings.peers if peer.speaks_dimse]
    titles = {title.strip() for title in settings.security.calling_ae_titles or named}
    networks_of: dict[str, Networks] = {}
    for peer in settings.peers:
        title = peer.ae_title.strip()
        if peer.addresses and title in titles:
            # Two peers may share an AE title: it comes from where either of them may be.
            networks_of[title] = networks_of.get(title, ()) + _networks(peer.addresses)
    return Admission(
        ae_title=settings.node.ae_title,
        calling_ae_titles=frozenset(titles),
        networks=_networks(settings.security.addresses),
        require_called_ae_title=settings.security.require_called_ae_title,
        networks_of=networks_of,
    )


def _networks(addresses: Iterable[str]) -> Networks:
    return tuple(ipaddress.ip_network(address, strict=False) for address in addresses)


class NoRoomError(OSError):
    """The disk is below its reserve: nothing is fetched until there is room."""


class Intake:
    """Takes objects from the listener, and closes studies that have fallen silent."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        spool: Spool,
        audit: Audit,
        *,
        pack_digest: str,
        settings_digest: str,
        enqueue: Callable[[Job], None],
        clock: QuietClock | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Args beyond the plain ones.

        Args:
            settings: The whole file.
            ledger: Where instances and decisions are recorded.
            spool: Where objects are written.
            audit: Where arrivals and refusals are noted.
            pack_digest: Of the model that new jobs are to use.
            settings_digest: Of the settings that change a result.
            enqueue: Hands a job to the engine; called again for the same job, it does nothing.
            clock: Of the silence of studies.
            sources: Knows what the peers list that studies are fetched from.
        """
        self._settings = settings
        self._selection = settings.selection
        self._ledger = ledger
        self._spool = spool
        self._audit = audit
        self._pack_digest = pack_digest
        self._settings_digest = settings_digest
        self._enqueue = enqueue
        self._clock = clock or QuietClock()
        self.sources = sources
        """Set by whoever builds the node; a source needs an intake, too."""
        self.reserve = Reserve(spool.folder, settings.node)
        """Of the disk that everything is on."""
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._sweeping = threading.Lock()
        self._refusals = Refusals(self._write_refusal)

    def use_selection(self, selection: SelectionSettings) -> None:
        """Decide by these rules from now on; what is decided stays as it is."""
        self._selection = selection
        log.info("rules.changed")

    # --- receiving ---------------------------------------------------------------------------

    def on_store(self, received: ReceivedObject) -> int:
        """Keep an object; the C-STORE status to answer with. Raises nothing."""
        try:
            return self._take(received)
        except RefusedObjectError as error:
            log.warning(
                "store.refused",
                reason=error.reason,
                why=str(error),
                calling_ae_title=received.calling_ae_title,
                address=received.address,
            )
            return _STATUS_OF_REFUSAL.get(error.reason, CANNOT_UNDERSTAND)
        except (OSError, sqlite3.Error):
            log.exception("store.failed", calling_ae_title=received.calling_ae_title)
            return OUT_OF_RESOURCES

    def on_refusal(self, refusal: Refusal) -> None:
        """Note somebody whom the listener turned away."""
        self._refusals.note(refusal)

    def _write_refusal(self, facts: Mapping[str, str | int]) -> None:
        log.warning("association.refused", **facts)
        with suppress(OSError):
            self._audit.append(AuditEvent.REFUSED, **facts)

    def _take(self, received: ReceivedObject) -> int:
        identity = identify(
            received.dataset,
            received.sop_class_uid,
            received.sop_instance_uid,
            received.transfer_syntax_uid,
        )
        digest = received.sha256 or dataset_digest(received.dataset)
        if not self.reserve.has_room_for(len(received.dataset)):
            if not self._is_here(identity.sop_instance_uid, digest):
                return OUT_OF_RESOURCES
            self._clock.touch(identity.study_instance_uid)
            return SUCCESS
        self._keep(
            received_instance(identity, digest, identity.path, received.calling_ae_title),
            partial(self._spool.write, received),
        )
        return SUCCESS

    def take_fetched(
        self, pieces: Iterable[bytes], sop_instance_uid: str, *, sender: str, size: int
    ) -> None:
        """Keep an object that we asked for, as if it had been sent: durable when this returns.

        Args:
            pieces: Of the file, as it comes in.
            sop_instance_uid: What was asked for.
            sender: AE title of the peer that it comes from.
            size: Of the file, as far as it is known.

        Raises:
            RefusedObjectError: It cannot be kept, and asking again is of no use.
            NoRoomError: The disk is below its reserve.
            OSError, sqlite3.Error: The disk or the ledger is broken.
        """
        if not self.reserve.has_room_for(size):
            raise NoRoomError("the disk is below its reserve")
        arrival = self._spool.receive(pieces, sop_instance_uid, sender)
        try:
            identity = arrival.identity
            self._keep(
                received_instance(identity, arrival.digest, identity.path, sender),
                partial(self._spool.adopt, arrival),
            )
        finally:
            self._spool.discard(arrival)

    def _is_here(self, sop_instance_uid: str, digest: str) -> bool:
        """The same object, on disk: to take it once more needs no room."""
        known = self._ledger.instance(sop_instance_uid)
        return (
            known is not None
            and known.digest == digest
            and (self._spool.folder / known.path).is_file()
        )

    def _keep(self, arrived: ReceivedInstance, place: Callable[[Path], None]) -> None:
        """Record an object, once `place` has put it durably under the path that it is given."""
        with self._locks[hash(arrived.sop_instance_uid) % _LOCKS]:
            known = self._ledger.instance(arrived.sop_instance_uid)
            if known is None:
                # A file that lies there already is of a crash before its row: nobody was told.
                place(arrived.path)
                if self._ledger.record(arrived) is not Recorded.NEW:
                    raise sqlite3.IntegrityError("an instance was recorded behind its own lock")
            elif known.digest != arrived.digest:
                self._set_aside(arrived, place, self._spool.folder / known.path)
            elif not (self._spool.folder / known.path).is_file():
                place(known.path)
                self._ledger.files_came_back(known.series_instance_uid)
        self._clock.touch(arrived.study_instance_uid)

    def _set_aside(
        self, arrived: ReceivedInstance, place: Callable[[Path], None], first: Path
    ) -> None:
        path = self._spool.conflict_path(arrived.sop_instance_uid, arrived.digest)
        place(path)
        if same_content(first, self._spool.folder / path):
            (self._spool.folder / path).unlink()
            return
        self._ledger.record_conflict(replace(arrived, path=path))
        log.error(
            "series.conflict",
            study_uid=arrived.study_instance_uid,
            series_uid=arrived.series_instance_uid,
            reason=CONFLICTING,
        )

    # --- closing -----------------------------------------------------------------------------

    def sweep(self) -> list[Job]:
        """Close every study that has been silent for the quiet period; the jobs that came of it."""
        self._refusals.flush()
        with self._sweeping:
            jobs = []
            peer_answers = True
            for study in self._ledger.receiving_studies():
                uid = study.study_instance_uid
                if self._clock.silence_s(uid) < self._settings.completeness.quiet_period_s:
                    continue
                try:
                    closed, peer_answers = self._close(uid, ask=peer_answers)
                except (OSError, sqlite3.Error):
                    log.exception("study.not-closed", study_uid=uid)  # tried again at the next one
                    continue
                except Exception:
                    # One study that trips over our own fault must not stop all others, nor vanish.
                    log.exception("study.not-closed", study_uid=uid, reason="internal-error")
                    closed = self._fail(uid)
                jobs.extend(closed)
        for job in jobs:
            self._enqueue(job)
        return jobs

    def _close(self, study_uid: str, *, ask: bool) -> tuple[list[Job], bool]:
        """Decide and close a study, or give it another quiet period.

        Returns:
            Its unfinished jobs, and whether the peer is worth asking for the next study.
        """
        receiving = [
            row for row in self._ledger.series_of(study_uid) if row.state is SeriesState.RECEIVING
        ]
        decisions = self._decide(study_uid, receiving)
        open_questions = [
            row.series_instance_uid
            for row in receiving
            if depends_on_slices(decisions[row.series_instance_uid])
        ]
        listing = NOTHING_LISTED
        if self.sources is not None and open_questions:
            in_question = [row for row in receiving if row.series_instance_uid in open_questions]
            listing = self.sources.listing(study_uid, in_question)
            # Where a series was fetched from is asked what belongs to it, and nobody else.
            open_questions = [uid for uid in open_questions if uid not in listing.verdicts]
        holding = NOT_ASKED
        if ask:
            holding = query_peer(self._settings, study_uid, open_questions)
        incomplete = [
            row
            for row in receiving
            if row.series_instance_uid in open_questions and holding.has_more(row)
        ]
        if (incomplete or listing.waits) and not self._waited_enough(
            study_uid, incomplete, holding, listing
        ):
            return [], True
        for row in receiving:
            uid = row.series_instance_uid
            decisions[uid] = replace(decisions[uid], counts=holding.counts(row))
        for row in incomplete:
            uid = row.series_instance_uid
            decisions[uid] = _held_incomplete(decisions[uid], row, holding)
        for uid, verdict in listing.verdicts.items():
            decisions[uid] = _as_listed(decisions[uid], verdict)
        jobs = self._ledger.close_study(
            study_uid,
            decisions.values(),
            self._pack_digest,
            self._settings_digest,
            # Slices that came while the headers were read are in no decision: another quiet period.
            seen={row.series_instance_uid: row.instances for row in receiving},
            tell_why=any("note" in one.kinds for one in self._settings.destinations),
        )
        self._clock.forget(study_uid)
        self._tell(study_uid, {row.series_instance_uid for row in receiving})
        asked = ask and bool(open_questions) and self._settings.completeness.query_peer is not None
        return jobs, holding.by_series is not None if asked else ask

    def _waited_enough(
        self,
        study_uid: str,
        incomplete: Sequence[SeriesRow],
        holding: PeerHolding,
        listing: Listing,
    ) -> bool:
        waited_s = self._clock.incomplete_s(study_uid)
        if waited_s >= self._settings.completeness.longest_wait_s:
            return True
        self._clock.touch(study_uid)
        for row in incomplete:
            log.info(
                "series.waiting",
                study_uid=study_uid,
                series_uid=row.series_instance_uid,
                reason=INCOMPLETE,
                instances=row.instances,
                count=(holding.by_series or {}).get(row.series_instance_uid, 0),
                waited_s=round(waited_s, 1),
            )
        for reason in listing.reasons_to_wait:
            log.info(
                "study.waiting", study_uid=study_uid, reason=reason, waited_s=round(waited_s, 1)
            )
        return False

    def _decide(self, study_uid: str, receiving: Iterable[SeriesRow]) -> dict[str, SeriesDecision]:
        """What the selection says of the whole study, for the series that wait for it."""
        paths, lacking = self._paths_of(study_uid)
        judged: dict[str, SeriesDecision] = {}
        differing: tuple[str, ...] = ()
        fallback = (Outcome.SKIPPED, UNREADABLE, "no object of this series could be read")
        if paths:
            try:
                study = read_study(self._spool.folder / study_uid, files=paths)
            except StudyError as error:
                fallback = (error.outcome, error.reason, str(error))
            else:
                differing = differing_patient(
                    instance.header for series in study.series for instance in series.instances
                )
                selection = choose(study, self._selection)
                judged = {
                    one.series_instance_uid: SeriesDecision(
                        series_instance_uid=one.series_instance_uid,
                        chosen=one.series_instance_uid == selection.selected,
                        outcome=one.outcome,
                        reason=one.reason,
                        explanation=one.explanation,
                        score=one.score,
                        rule=one.rule,
                        change=one.change,
                        rules_digest=selection.rules_digest,
                    )
                    for one in selection.decisions
                }
        decisions = {}
        for row in receiving:
            uid = row.series_instance_uid
            decision = judged.get(uid, SeriesDecision(uid, False, *fallback))
            if self._ledger.has_conflict(uid):
                explanation = "one SOP Instance UID arrived twice with different content"
                decision = _held(decision, CONFLICTING, explanation)
            elif uid in lacking:
                explanation = (
                    "files of this series were discarded or lost: send it again as a whole"
                )
                decision = _held(decision, MISSING_FILES, explanation)
            elif differing and decision.outcome is not Outcome.SKIPPED:
                explanation = f"the images of this study differ in {', '.join(differing)}"
                decision = _held(decision, MIXED_PATIENT, explanation)
            decisions[uid] = decision
        return decisions

    def _paths_of(self, study_uid: str) -> tuple[list[Path], set[str]]:
        """The files of a study, and the series that lack some of theirs."""
        paths, lacking = [], set()
        for row in self._ledger.series_of(study_uid):
            for instance in self._ledger.instances_of(row.series_instance_uid):
                path = self._spool.folder / instance.path
                if path.is_file():
                    paths.append(path)
                else:
                    lacking.add(row.series_instance_uid)
        return paths, lacking

    def _fail(self, study_uid: str) -> list[Job]:
        decisions = [
            SeriesDecision(
                series_instance_uid=row.series_instance_uid,
                chosen=False,
                outcome=Outcome.FAILED,
                reason="internal-error",
                explanation="flairnode could not judge this study; the log says where",
            )
            for row in self._ledger.series_of(study_uid)
        ]
        self._clock.forget(study_uid)
        return self._ledger.close_study(
            study_uid, decisions, self._pack_digest, self._settings_digest
        )

    def _tell(self, study_uid: str, closed: set[str]) -> None:
        for row in self._ledger.series_of(study_uid):
            if row.series_instance_uid not in closed or row.state is SeriesState.RECEIVING:
                continue
            log.info(
                "series.closed",
                study_uid=study_uid,
                series_uid=row.series_instance_uid,
                state=row.state.value,
                reason=row.reason,
                score=row.score,
                counts=row.counts.value,
                instances=row.instances,
                job=row.job_id,
            )
            origin = ""
            if self.sources is not None:
                origin = self.sources.origin(row)
            self._audit.append(
                AuditEvent.RECEIVED,
                study=study_uid,
                series=row.series_instance_uid,
                instances=row.instances,
                calling_ae_title=row.calling_ae_title,
                state=row.state.value,
                reason=row.reason,
                **({"source": origin} if origin else {}),
            )

    # --- starting and keeping house -----------------------------------------------------------

    def reconcile(self) -> None:
        """At start: make spool and ledger agree, and hand over again what is not finished.

        A file without a row is of a crash between rename and record. A half written file was never
        acknowledged. Jobs may have been lost with the engine's database.
        """
        removed = self._spool.remove_parts()
        self._finish_discarding()
        self._take_up_slots()
        recorded = record_spool(self._spool, self._ledger)
        missing = self._ledger.oracle().missing_files
        if removed or recorded:
            log.warning("spool.reconciled", files=removed, instances=recorded)
        if missing:
            log.error("spool.files-missing", instances=len(missing))
        for job in self._ledger.jobs(UNFINISHED):
            self._enqueue(job)

    def _take_up_slots(self) -> None:
        """What was received and synchronised, and lost its final name to a crash."""
        for slot in self._spool.left_in_slots():
            try:
                file = self._spool.describe(slot)
            except RefusedObjectError:
                slot.unlink()  # empty, or not whole: nobody was told of it
                continue
            arrived = received_instance(
                file.identity, file.digest, file.identity.path, file.calling_ae_title
            )
            self._keep(arrived, partial(self._spool.take_up, slot))
            slot.unlink(missing_ok=True)  # a copy of what is there already
            log.warning("spool.taken-up", instances=1)

    def discard_old(self, now: datetime | None = None) -> int:
        """Delete the images of series that came to a good end long enough ago; how many series.

        The ledger keeps its rows, so that a copy that is sent again is still known.
        """
        keep = timedelta(days=self._settings.retention.keep_days)
        return sum(self._discard(row) for row in self._discardable(now or datetime.now(UTC), keep))

    def make_room(self, now: datetime | None = None) -> int:
        """While the disk is short: the same before its time, the oldest first; how many series.

        Never younger than `retention.least_days`, and no more than is needed.
        """
        discarded = 0
        retention = self._settings.retention
        least = timedelta(days=min(retention.least_days, retention.keep_days))
        if self.reserve.look():
            for row in self._discardable(now or datetime.now(UTC), least):
                discarded += self._discard(row)
                if not self.reserve.look():
                    break
        return discarded

    def _discardable(self, now: datetime, age: timedelta) -> Iterator[SeriesRow]:
        asked_after = now - timedelta(days=self._settings.retention.unreported_days)
        peers = [destination.peer for destination in self._settings.destinations]
        for row in self._ledger.discardable(now - age):
            jobs = self._ledger.jobs_of(row.series_instance_uid)
            owed = [
                job
                for job in jobs
                if (job.job_id == row.job_id or job.state in UNFINISHED)
                and self._ledger.is_owed(job.job_id, peers, SETTLED, asked_after)
            ]
            if not owed and not self._ledger.has_conflict(row.series_instance_uid):
                yield row

    def _discard(self, row: SeriesRow) -> bool:
        self._ledger.mark_discarded(row.series_instance_uid)
        self._delete_files(row)
        log.info("spool.discarded", series_uid=row.series_instance_uid, instances=row.instances)
        with suppress(OSError):
            self._audit.append(
                AuditEvent.DISCARDED,
                what="images",
                study=row.study_instance_uid,
                series=row.series_instance_uid,
                instances=row.instances,
            )
        return True

    def _delete_files(self, row: SeriesRow) -> None:
        for instance in self._ledger.instances_of(row.series_instance_uid):
            (self._spool.folder / instance.path).unlink(missing_ok=True)
        with suppress(OSError):  # another series of the study still lies there
            folder = self._series_folder(row)
            folder.rmdir()
            folder.parent.rmdir()

    def _series_folder(self, row: SeriesRow) -> Path:
        return self._spool.folder / row.study_instance_uid / row.series_instance_uid

    def _finish_discarding(self) -> None:
        """A crash among the deletions would leave part of a series for ever."""
        for row in self._ledger.discarded():
            if self._series_folder(row).is_dir():
                self._delete_files(row)


def record_spool(spool: Spool, ledger: Ledger) -> int:
    """Enter every file of the spool that has no row yet; how many."""
    known = ledger.sop_instance_uids()
    recorded = 0
    for path in spool.files():
        if path.stem in known:
            continue
        try:
            file = spool.describe(path)
        except TornFileError:
            (spool.folder / path).unlink()  # of a power cut before anybody was told
            log.warning("spool.torn-file")
            continue
        except RefusedObjectError as error:
            # Not ours to delete: perhaps somebody wants to know where it came from.
            log.warning("spool.strange-file", reason=error.reason)
            continue
        ledger.record(received_instance(file.identity, file.digest, path, file.calling_ae_title))
        recorded += 1
    return recorded


def received_instance(
    identity: Identity, digest: str, path: Path, calling_ae_title: str
) -> ReceivedInstance:
    """What the ledger records of an object in the spool, fresh from the wire or read back."""
    return ReceivedInstance(
        study_instance_uid=identity.study_instance_uid,
        series_instance_uid=identity.series_instance_uid,
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=identity.sop_class_uid,
        digest=digest,
        path=path,
        calling_ae_title=calling_ae_title,
    )


def _held(decision: SeriesDecision, reason: str, explanation: str) -> SeriesDecision:
    return replace(
        decision,
        chosen=False,
        outcome=Outcome.HELD,
        reason=reason,
        explanation=explanation,
        rule="",  # the intake's own decision, whatever the selection says
        change="",
    )


def _as_listed(decision: SeriesDecision, verdict: Verdict) -> SeriesDecision:
    decision = replace(decision, counts=verdict.counts)
    # A conflict or a lost file is the plainer reason.
    if not verdict.reason or decision.outcome is Outcome.HELD:
        return decision
    return _held(decision, verdict.reason, verdict.explanation)


def _held_incomplete(
    decision: SeriesDecision, row: SeriesRow, holding: PeerHolding
) -> SeriesDecision:
    count = (holding.by_series or {}).get(row.series_instance_uid, 0)
    explanation = f"{row.instances} instances arrived, the peer says it holds {count}"
    return _held(decision, INCOMPLETE, explanation)
