"""A second intake: an Orthanc is followed, and what it received is fetched from it.

Its change feed tells early where something is new; comparing all recent studies with the ledger, at
each start and on a timer, tells surely. Either way the question is the same one: which instances
does the source list that are not here? They are fetched on the same durable path as by C-STORE, so
completeness, selection and every end of a series are the same. Nothing rests on an event: Orthanc
forgets stable events over a crash, and its feed begins anew when it is emptied.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import structlog

from config.settings import Peer, Settings, Source
from dicom.network.orthanc_source import Change, ChangePage, OrthancSource, SeriesHead
from dicom.network.scu import PeerError, PeerRefusedError, PeerUnreachableError
from node.audit import Audit, AuditEvent
from node.completeness import (
    DELETED_AT_SOURCE,
    INCOMPLETE,
    SOURCE_UNREACHABLE,
    Listing,
    Verdict,
)
from node.intake import Intake, NoRoomError
from node.ledger import (
    CONFLICTING,
    MISSING_FILES,
    Counts,
    Ledger,
    SeriesRow,
)
from node.remotes import (
    GoneError,
    ListedSeries,
    OrthancRemote,
    Remote,
    passed_over,
    remote_of,
    sender_of,
    stamp_of,
)
from node.sources import FetchRequest, Noted, RequestState, SourceBook, SourceSeries
from node.spool import RefusedObjectError, Spool

log = structlog.get_logger(__name__)

# Of one look, so that a flood of one kind does not keep the others waiting.
PAGES_A_LOOK = 10
CHANGES_A_PAGE = 500
STUDIES_A_PAGE = 100
SERIES_A_LOOK = 200
INSTANCES_A_LOOK = 400

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
SILENT_S = 10.0
"""A peer that did not answer is not asked again so soon: all studies wait for the answer."""
LOOKED_EVERY_S = 15.0  # how often it is written down that all is well
REQUEST_PAUSE_S = 5.0
REQUEST_LIFE = timedelta(hours=1)
OVERLAP = timedelta(hours=1)
"""A comparison goes back to before the begin of the last one: its clock may have been set."""
_ORTHANC_TIME = "%Y%m%dT%H%M%S"
_HELD_FOR_THE_SOURCE = frozenset({INCOMPLETE, SOURCE_UNREACHABLE, DELETED_AT_SOURCE})
_KNOWN_STUDIES = 1000


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of fetching some instances."""

    taken: int = 0
    refused: int = 0
    """Never to be taken; noted with the reason."""
    gone: int = 0
    """Deleted at the source since they were listed."""
    failed: int = 0
    """To be tried again."""
    trouble: str = ""

    @property
    def settled(self) -> int:
        """Instances that nobody has to ask for again."""
        return self.taken + self.refused


class Fetcher:
    """Fetches from one peer what is listed there and not here."""

    def __init__(
        self,
        peer: Peer,
        book: SourceBook,
        ledger: Ledger,
        spool: Spool,
        intake: Intake,
        audit: Audit,
        parallel: int,
    ) -> None:
        """Connect to nothing yet; all but `peer` and `parallel` are shared with others."""
        self.peer = peer
        self._book = book
        self._ledger = ledger
        self._spool = spool
        self._intake = intake
        self._audit = audit
        self._parallel = parallel
        self._remote: Remote | None = None
        self._examined: dict[str, set[str]] = {}
        """Remote id of a series that is fetched although it is here -> what was."""

    @property
    def remote(self) -> Remote:
        """The way to the peer.

        Raises:
            PeerError: Its password or certificates cannot be read.
        """
        if self._remote is None:
            self._remote = remote_of(self.peer)
        return self._remote

    def reconnect(self) -> None:
        """Make the way anew at its next use: a password may have been corrected."""
        remote, self._remote = self._remote, None
        if remote is not None:
            remote.close()

    def forget(self, remote_id: str) -> None:
        """The series is settled."""
        self._examined.pop(remote_id, None)

    def decide_again(self, listed: ListedSeries) -> None:
        """Open a series that was held for want of its source, if it agrees with it now."""
        uid = listed.series_instance_uid
        here = {one.sop_instance_uid for one in self._ledger.instances_of(uid)}
        if here == set(listed.instances):
            self._ledger.look_again(uid, _HELD_FOR_THE_SOURCE, "agrees-with-source")

    def missing(self, series: SourceSeries, listed: ListedSeries) -> list[str]:
        """SOP Instance UIDs that are listed, and neither here nor refused."""
        uid = listed.series_instance_uid
        if series.again:
            return sorted(
                set(listed.instances) - self._examined.setdefault(series.remote_id, set())
            )
        row = self._ledger.series(uid)
        lost_ones_count = row is not None and row.reason == MISSING_FILES
        here = {
            instance.sop_instance_uid
            for instance in self._ledger.instances_of(uid)
            if not lost_ones_count or (self._spool.folder / instance.path).is_file()
        }
        return sorted(set(listed.instances) - here - set(self._book.refusals(self.peer.name, uid)))

    def fetch(self, listed: ListedSeries, sop_instance_uids: Sequence[str]) -> Fetched:
        """Fetch these, several at a time.

        Raises:
            PeerUnreachableError: The peer fell silent; what came before stays.
            OSError, sqlite3.Error: Disk or ledger is broken or full.
        """
        counts: Counter[str] = Counter()
        trouble = ""
        broken: Exception | None = None
        with ThreadPoolExecutor(self._parallel, "fetch") as pool:
            takes = [pool.submit(self._take, listed, uid) for uid in sop_instance_uids]
            for take in takes:
                if broken is not None and take.cancel():
                    continue
                try:
                    counts[take.result()] += 1
                except (PeerUnreachableError, OSError, sqlite3.Error) as error:
                    broken = broken or error
                except PeerError as error:
                    counts["failed"] += 1
                    trouble = str(error)
        if counts:
            log.info(
                "fetch.series",
                peer=self.peer.name,
                study_uid=listed.study_instance_uid,
                series_uid=listed.series_instance_uid,
                instances=counts["taken"],
                count=len(listed.instances),
            )
        if broken is not None:
            raise broken
        return Fetched(
            taken=counts["taken"],
            refused=counts["refused"],
            gone=counts["gone"],
            failed=counts["failed"],
            trouble=trouble,
        )

    def _take(self, listed: ListedSeries, sop_instance_uid: str) -> str:
        """The field of `Fetched` to count it in."""
        series_uid = listed.series_instance_uid
        try:
            with self.remote.file(listed, sop_instance_uid, self._spool.incoming) as pieces:
                self._intake.take_fetched(
                    pieces,
                    sop_instance_uid,
                    sender=sender_of(self.peer),
                    size=listed.instances[sop_instance_uid].size,
                )
        except GoneError:
            return "gone"
        except RefusedObjectError as error:
            self._refuse(listed, sop_instance_uid, error.reason, str(error))
            return "refused"
        if listed.remote_id in self._examined:
            self._examined[listed.remote_id].add(sop_instance_uid)
        kept = self._ledger.instance(sop_instance_uid)
        if kept is None or kept.series_instance_uid != series_uid:
            why = "it is of another series than the one that it was listed in"
            self._refuse(listed, sop_instance_uid, CONFLICTING, why)
            return "refused"
        return "taken"

    def _refuse(self, listed: ListedSeries, sop_instance_uid: str, reason: str, why: str) -> None:
        self._book.refuse(self.peer.name, sop_instance_uid, listed.series_instance_uid, reason)
        log.warning(
            "fetch.refused",
            peer=self.peer.name,
            reason=reason,
            why=why,
            series_uid=listed.series_instance_uid,
            instance_uid=sop_instance_uid,
        )
        with suppress(OSError):
            self._audit.append(
                AuditEvent.REFUSED,
                reason=reason,
                source=self.peer.name,
                calling_ae_title=sender_of(self.peer),
                address=address_of(self.peer),
                study=listed.study_instance_uid,
                series=listed.series_instance_uid,
                instance=sop_instance_uid,
            )


class Follower:
    """Follows one Orthanc. `look` is called again and again, never twice at the same time."""

    def __init__(
        self,
        source: Source,
        fetcher: Fetcher,
        book: SourceBook,
        ledger: Ledger,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args.

        Args:
            source: What the settings say of it.
            fetcher: Of its peer, which has an `orthanc_url`.
            book: What is remembered.
            ledger: What is here.
            clock: Of pauses; tests move it.
        """
        self.source = source
        self._name = source.peer
        self._fetcher = fetcher
        self._book = book
        self._ledger = ledger
        self._clock = clock
        self._not_before = 0.0
        self._failures = 0
        self.answering_since: float | None = None
        """When it answered again after trouble; None: it always did."""
        self._looked_at: float | None = None
        self._pass: _Pass | None = None
        self._next_pass = 0.0
        self._series_later: dict[str, tuple[int, float]] = {}
        """Orthanc's id of a series -> (failures in a row, not before)."""
        self._quiet: dict[str, str] = {}
        """Orthanc's id of a growing series -> its stamp when nothing was missing."""
        self._studies: dict[str, str] = {}
        """Orthanc's id of a study -> Study Instance UID."""

    @property
    def _remote(self) -> OrthancRemote:
        remote = self._fetcher.remote
        if not isinstance(remote, OrthancRemote):
            raise TypeError("only an Orthanc can be followed")
        return remote

    @property
    def _orthanc(self) -> OrthancSource:
        return self._remote.source

    def look(self) -> None:
        """See what is new at the source and fetch it, a bounded piece at a time. Raises nothing."""
        if self._clock() < self._not_before:
            return
        try:
            self._meet()
            if self.source.follow:
                self._read_changes()
            self._compare_recent()
            self._fetch_open()
        except (PeerError, NoRoomError) as error:
            self._pause(str(error), getattr(error, "reason", "disk-reserve"))
        except (OSError, sqlite3.Error) as error:
            log.exception("source.look-failed", peer=self._name)
            self._pause(type(error).__name__, "disk-or-ledger")
        except Exception as error:
            # A source that trips over our own fault must not stop the others, nor vanish.
            log.exception("source.look-failed", peer=self._name, reason="internal-error")
            self._pause(type(error).__name__, "internal-error")
        else:
            self._went_well()

    def compare_now(self) -> None:
        """Compare all recent studies at the next look, from the first one on."""
        self._pass, self._next_pass = None, 0.0

    # --- trouble -----------------------------------------------------------------------------

    def _pause(self, why: str, reason: str) -> None:
        if self._failures == 0:
            log.error("source.trouble", peer=self._name, reason=reason, why=why)
        self._failures += 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10))
        self._not_before = self._clock() + pause_s
        self._fetcher.reconnect()
        with suppress(sqlite3.Error):  # it may be the very trouble
            self._book.looked(self._name, why)

    def _went_well(self) -> None:
        now = self._clock()
        if self._failures:
            log.warning("source.answers", peer=self._name, attempts=self._failures)
            self._failures = 0
            self.answering_since = now
            # Whatever it was, it may have forgotten events, or be another one.
            self.compare_now()
        elif self._looked_at is not None and now - self._looked_at < LOOKED_EVERY_S:
            return
        self._looked_at = now
        self._book.looked(self._name)

    def _meet(self) -> None:
        if not self._book.meet(self._name, self._orthanc.system()):
            log.warning("source.another-orthanc", peer=self._name)
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._quiet.clear()
        self._series_later.clear()
        self.compare_now()

    # --- the change feed ---------------------------------------------------------------------

    def _read_changes(self) -> None:
        standing = self._book.standing(self._name)
        if standing is None or standing.cursor < 0:
            # What is there already is found by comparing.
            self._book.advance(self._name, *_end_of(self._orthanc.last_change()))
            return
        cursor, anchor = standing.cursor, standing.anchor
        for _ in range(PAGES_A_LOOK):
            # One earlier than needed: the change that was read last must still be there, or the
            # numbers are no longer those that we counted with.
            page = self._orthanc.changes(max(0, cursor - 1), CHANGES_A_PAGE)
            first = page.changes[0] if page.changes else None
            new = page.changes
            if first is not None and first.seq == cursor:
                new = page.changes[1:]
            if not self._still_the_same(cursor, anchor, first, page):
                self._begin_anew()
                if page.last < cursor:
                    self._book.advance(self._name, *_end_of(self._orthanc.last_change()))
                    return
            noted = self._series_in(new)
            cursor, anchor = (new[-1].seq, new[-1].anchor) if new else (cursor, _anchor(first))
            if (cursor, anchor) != (standing.cursor, standing.anchor):
                self._book.advance(self._name, cursor, anchor, noted)
            if page.done:
                return

    def _still_the_same(
        self, cursor: int, anchor: str, first: Change | None, page: ChangePage
    ) -> bool:
        """Is the feed the one that was read up to the cursor?

        Orthanc forgets the changes of what is deleted. So a change that is gone proves nothing;
        recent studies are then compared, which costs little.
        """
        if page.last < cursor:
            log.warning("source.sequence-restarted", peer=self._name, count=page.last)
            return False
        if not anchor or cursor == 0:
            return True
        if first is None or first.seq != cursor:
            log.info("source.change-gone", peer=self._name)
            return False
        if first.anchor != anchor:
            log.warning("source.sequence-replaced", peer=self._name)
            return False
        return True

    def _series_in(self, changes: Iterable[Change]) -> list[Noted]:
        """Series that these changes are of, and the rest of their studies: selection needs it."""
        noted: dict[str, Noted] = {}
        explained: set[str] = set()
        for change in changes:
            if change.kind not in self.source.changes or change.id in explained:
                continue
            series_id: str | None = change.id
            if change.resource == "Instance":
                series_id = self._orthanc.parent_series(change.id)
            if series_id is None or series_id in explained:
                continue
            head = self._orthanc.series(series_id)
            if head is None:
                continue  # deleted since
            heads = self._orthanc.series_of(head.study_id)
            for one in heads:
                explained.update((one.id, *one.instances))
            changed = [one for one in heads if not self._known_as_it_is(one)]
            noted.update((one.remote_id, one) for one in self._wanted(changed))
        return list(noted.values())

    def _wanted(self, heads: Sequence[SeriesHead]) -> list[Noted]:
        noted, left_out = [], Counter[str]()
        for head in heads:
            refused = self._remote.refusal(head)
            if refused:
                left_out[refused] += 1
                continue
            study_uid = self._study_uid(head.study_id)
            if study_uid:
                noted.append(Noted(head.id, head.series_instance_uid, study_uid))
        for reason, count in left_out.items():
            log.info("source.passed-over", peer=self._name, reason=reason, count=count)
        return noted

    def _study_uid(self, study_id: str) -> str | None:
        if study_id not in self._studies:
            uid = self._orthanc.study_instance_uid(study_id)
            if uid is None:
                return None
            if len(self._studies) >= _KNOWN_STUDIES:
                self._studies.clear()
            self._studies[study_id] = uid
        return self._studies[study_id]

    # --- comparing ---------------------------------------------------------------------------

    def _compare_recent(self) -> None:
        """A piece of going through all studies of the source; the recent ones are noted."""
        if self._pass is None:
            if self._clock() < self._next_pass:
                return
            self._pass = self._begin_pass()
        for _ in range(PAGES_A_LOOK):
            if self._compare_page(self._pass):
                self._end_pass(self._pass)
                return

    def _compare_page(self, current: _Pass) -> bool:
        """Was it the last page?"""
        page = self._orthanc.studies(current.offset, STUDIES_A_PAGE)
        changed: list[SeriesHead] = []
        for study in page:
            if study.last_update < current.not_before:
                continue
            current.studies += 1
            self._studies[study.id] = study.study_instance_uid
            heads = self._orthanc.series_of(study.id)
            changed += [head for head in heads if not self._known_as_it_is(head)]
        noted = self._wanted(changed)
        self._book.note(self._name, noted)
        current.noted += len(noted)
        current.offset += len(page)
        return len(page) < STUDIES_A_PAGE

    def _end_pass(self, ended: _Pass) -> None:
        self._pass = None
        self._next_pass = self._clock() + self.source.reconcile_every_s
        keep_days = max(30.0, 2 * self.source.look_back_days)
        self._book.reconciled(self._name, ended.began_at, keep_days)
        log.info("source.compared", peer=self._name, count=ended.studies, objects=ended.noted)

    def _begin_pass(self) -> _Pass:
        began_at = self._orthanc.now()
        now = _time(began_at)
        look_back = now - timedelta(days=self.source.look_back_days)
        standing = self._book.standing(self._name)
        if standing is not None and standing.reconciled_at:
            # We may have been away for longer than we look back.
            look_back = min(look_back, _time(standing.reconciled_at) - OVERLAP)
        return _Pass(began_at, look_back.strftime(_ORTHANC_TIME))

    def _known_as_it_is(self, head: SeriesHead) -> bool:
        """Was it compared before, did it not change since, and is what was fetched still known?"""
        known = self._book.series(self._name, head.id)
        if known is None or known.stamp != stamp_of(head):
            return False
        row = self._ledger.series(head.series_instance_uid)
        refused = len(self._book.refusals(self._name, head.series_instance_uid))
        here = 0 if row is None else row.instances
        held = row is not None and row.reason in (*_HELD_FOR_THE_SOURCE, MISSING_FILES)
        return here >= known.listed - refused and not held

    # --- fetching ----------------------------------------------------------------------------

    def _fetch_open(self) -> None:
        budget, looks = INSTANCES_A_LOOK, 0
        for series in self._book.open_series(self._name, limit=10_000):
            _, not_before = self._series_later.get(series.remote_id, (0, 0.0))
            if self._clock() < not_before:
                continue
            budget -= self._fetch_series(series, budget)
            looks += 1
            if budget <= 0 or looks >= SERIES_A_LOOK:
                return

    def _fetch_series(self, series: SourceSeries, budget: int) -> int:
        """Fetch what a series lacks here; how many instances that were."""
        head = self._orthanc.series(series.remote_id)
        if head is None:
            # Deleted. What was fetched of it gets its reason when the study is closed.
            self._book.settle(series, listed=0, stamp="")
            self._forget(series)
            return 0
        stamp = stamp_of(head)
        if not head.stable and self._quiet.get(head.id) == stamp:
            return 0
        listed = self._remote.listed(head, series.study_instance_uid)
        missing = self._fetcher.missing(series, listed)
        self._book.compared(series, listed=len(listed.instances), missing=len(missing))
        now = missing[:budget]
        found = self._fetcher.fetch(listed, now) if now else Fetched()
        if found.failed:
            self._try_later(series, found.trouble)
            return len(now)
        self._series_later.pop(series.remote_id, None)
        if found.settled < len(missing) or len(listed.instances) != len(head.instances):
            return len(now)  # the rest, or what changed meanwhile, at the next look
        self._quiet[head.id] = stamp
        self._book.compared(series, listed=len(listed.instances), missing=0)
        if head.stable:
            self._book.settle(series, listed=len(listed.instances), stamp=stamp)
            self._forget(series)
            self._fetcher.decide_again(listed)
        return len(now)

    def _forget(self, series: SourceSeries) -> None:
        self._fetcher.forget(series.remote_id)
        self._quiet.pop(series.remote_id, None)
        self._series_later.pop(series.remote_id, None)

    def _try_later(self, series: SourceSeries, trouble: str) -> None:
        """The peer answers, but not for this series: others must not wait for it."""
        failures = self._series_later.get(series.remote_id, (0, 0.0))[0] + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
        self._series_later[series.remote_id] = (failures, self._clock() + pause_s)
        log.warning(
            "source.series-trouble",
            peer=self._name,
            series_uid=series.series_instance_uid,
            why=trouble,
            attempts=failures,
            waited_s=pause_s,
        )


@dataclass(slots=True)
class _Pass:
    """One going through all studies of a source."""

    began_at: str
    not_before: str
    offset: int = 0
    studies: int = 0
    noted: int = 0


class FollowedSources:
    """All peers that studies are fetched from: followed, or asked for one study."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        spool: Spool,
        intake: Intake,
        audit: Audit,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet.

        Raises:
            sqlite3.OperationalError: `sources.sqlite` cannot be opened.
        """
        self.book = SourceBook(settings.node.data_dir)
        self._ledger = ledger
        self._clock = clock
        self._parallel = {source.peer: source.parallel for source in settings.sources}
        self._fetchers = {
            peer.name: Fetcher(
                peer, self.book, ledger, spool, intake, audit, self._parallel.get(peer.name, 4)
            )
            for peer in settings.peers
            if peer.orthanc_url is not None or peer.dicomweb_url is not None
        }
        self.followers = [
            Follower(source, self._fetchers[source.peer], self.book, ledger, clock=clock)
            for source in settings.sources
        ]
        self._quiet_period_s = settings.completeness.quiet_period_s
        self._silent_until: dict[str, float] = {}
        self._silent: set[str] = set()
        """Peers that did not answer when they were asked what belongs to a study."""
        self._answering_since: dict[str, float] = {}
        self._request_later: dict[int, float] = {}

    def close(self) -> None:
        """Close connections and tables."""
        for fetcher in self._fetchers.values():
            fetcher.reconnect()
        self.book.close()

    # --- completeness ------------------------------------------------------------------------

    def origin(self, series: SeriesRow) -> str:
        """Names of the peers that list, or listed, a series."""
        return ",".join(self.book.sources_of(series.series_instance_uid))

    def listing(self, study_instance_uid: str, series: Sequence[SeriesRow]) -> Listing:
        """What the sources of a study list, compared with what is here."""
        by_source: defaultdict[str, list[SourceSeries]] = defaultdict(list)
        for one in self.book.series_of_study(study_instance_uid):
            by_source[one.source].append(one)
        verdicts: dict[str, Verdict] = {}
        to_come: set[str] = set()
        for name, known in by_source.items():
            if name not in self._fetchers:
                continue  # no longer configured
            peer = self._fetchers[name].peer
            found, coming = self._ask(peer, study_instance_uid, series, known)
            to_come |= coming
            for uid, verdict in found.items():
                verdicts[uid] = _graver(verdicts.get(uid, verdict), verdict)
        return Listing(verdicts, len(to_come))

    def _ask(
        self,
        peer: Peer,
        study_uid: str,
        series: Sequence[SeriesRow],
        known: Sequence[SourceSeries],
    ) -> tuple[dict[str, Verdict], set[str]]:
        try:
            listed = self._list(peer, study_uid)
        except PeerError as error:
            why = f"{peer.name} could not be asked what belongs to this series: {error}"
            return _unanswered(peer, series, known, why), self._untouched(known)
        wanted = [one for one in listed if not one.refused]
        verdicts = self._verdicts(peer, series, known, wanted)
        return verdicts, self._new(peer, known, wanted)

    def _list(self, peer: Peer, study_uid: str) -> list[ListedSeries]:
        if self._clock() < self._silent_until.get(peer.name, 0.0):
            raise PeerUnreachableError(f"{peer.name} did not answer a moment ago")
        try:
            listed = self._fetchers[peer.name].remote.series_of_study(study_uid)
        except PeerError as error:
            self._silent.add(peer.name)
            self._silent_until[peer.name] = self._clock() + SILENT_S
            log.warning(
                "completeness.unconfirmed", peer=peer.name, reason=error.reason, why=str(error)
            )
            raise
        self._require_settled(peer)
        return listed

    def _require_settled(self, peer: Peer) -> None:
        """A source that was away is given a quiet period: whoever sends to it was cut off, too."""
        if peer.name in self._silent:
            self._silent.discard(peer.name)
            self._answering_since[peer.name] = self._clock()
        since = [self._answering_since.get(peer.name)]
        since += [one.answering_since for one in self.followers if one.source.peer == peer.name]
        latest = max((one for one in since if one is not None), default=None)
        if latest is not None and self._clock() - latest < self._quiet_period_s:
            raise PeerUnreachableError(f"{peer.name} was away until a moment ago")

    def _untouched(self, known: Iterable[SourceSeries]) -> set[str]:
        """Series that are to be fetched and of which nothing is here."""
        return {
            one.series_instance_uid
            for one in known
            if one.open and self._ledger.series(one.series_instance_uid) is None
        }

    def _new(
        self, peer: Peer, known: Sequence[SourceSeries], wanted: Sequence[ListedSeries]
    ) -> set[str]:
        """Series that the source lists now, to be fetched, and of which nothing is here."""
        open_ones = {one.remote_id for one in known if one.open}
        if peer.name in self._parallel:
            ids = {one.remote_id for one in known}
            unheard_of = [one for one in wanted if one.remote_id not in ids]
            self.book.note(
                peer.name,
                [
                    Noted(one.remote_id, one.series_instance_uid, one.study_instance_uid)
                    for one in unheard_of
                ],
            )
            open_ones |= {one.remote_id for one in unheard_of}
        return {
            one.series_instance_uid
            for one in wanted
            if one.remote_id in open_ones
            and set(one.instances) - set(self.book.refusals(peer.name, one.series_instance_uid))
            and self._ledger.series(one.series_instance_uid) is None
        }

    def _verdicts(
        self,
        peer: Peer,
        series: Sequence[SeriesRow],
        known: Sequence[SourceSeries],
        wanted: Sequence[ListedSeries],
    ) -> dict[str, Verdict]:
        listed: defaultdict[str, set[str]] = defaultdict(set)
        for one in wanted:
            listed[one.series_instance_uid] |= set(one.instances)
        once_listed = {one.series_instance_uid for one in known}
        under_two_patients = {
            one.series_instance_uid for one in known if one.again and one.open
        } & set(listed)
        verdicts = {}
        for row in series:
            uid = row.series_instance_uid
            if uid not in listed and uid not in once_listed:
                continue  # not of this peer
            here = {one.sop_instance_uid for one in self._ledger.instances_of(uid)}
            verdicts[uid] = _verdict(
                peer, row, here, listed[uid], self.book.refusals(peer.name, uid)
            )
            if uid in under_two_patients:
                why = f"{peer.name} lists it under two patients; the other one is being compared"
                verdicts[uid] = Verdict(Counts.UNCONFIRMED, INCOMPLETE, why, waits=True)
        return verdicts

    # --- one study on demand -----------------------------------------------------------------

    def serve_requests(self) -> None:
        """Fetch what operators asked for (`flairnode fetch`). Raises nothing."""
        try:
            requests = self.book.asked()
        except sqlite3.Error:
            log.exception("fetch.failed")
            return
        for request in requests:
            if self._clock() < self._request_later.get(request.number, 0.0):
                continue
            try:
                answer = self._serve(request)
                self.book.answer(answer)
            except (OSError, sqlite3.Error):
                log.exception("fetch.failed", peer=request.source)
                self._request_later[request.number] = self._clock() + REQUEST_PAUSE_S
                continue
            if answer.state is RequestState.ASKED:
                self._request_later[request.number] = self._clock() + REQUEST_PAUSE_S
            else:
                self._request_later.pop(request.number, None)

    def _serve(self, request: FetchRequest) -> FetchRequest:
        fetcher = self._fetchers.get(request.source)
        if fetcher is None:
            why = f"no peer {request.source} with a web address is configured"
            return _refused(request, "no-such-peer", why)
        try:
            return self._fetch_study(request, fetcher)
        except PeerRefusedError as error:
            fetcher.reconnect()  # a corrected password is read at the next request
            return _refused(request, error.reason, str(error))
        except PeerError as error:
            fetcher.reconnect()
            log.warning("fetch.trouble", peer=request.source, reason=error.reason, why=str(error))
            age = datetime.now(UTC) - datetime.fromisoformat(request.asked_at)
            if age > REQUEST_LIFE:
                return _refused(request, error.reason, str(error))
            return replace(request, reason=error.reason, explanation=str(error))

    def _fetch_study(self, request: FetchRequest, fetcher: Fetcher) -> FetchRequest:
        name, study_uid = request.source, request.study_instance_uid
        listed = fetcher.remote.series_of_study(study_uid)
        wanted = [one for one in listed if not one.refused]
        left_out = passed_over(listed)
        request = replace(
            request,
            listed=sum(len(one.instances) for one in wanted),
            passed_over=sum(left_out.values()),
        )
        if not listed:
            return _refused(request, "study-not-found", f"{name} holds no such study")
        if not wanted:
            why = f"{name} holds {len(listed)} series of it, none of MR images"
            return _refused(request, "no-mr-series", why)
        self.book.note(
            name, [Noted(one.remote_id, one.series_instance_uid, study_uid) for one in wanted]
        )
        for one in wanted:
            series = self.book.series(name, one.remote_id)
            if series is None:
                continue
            # Whoever asks by name wants what was refused to be tried again.
            self.book.forgive(name, one.series_instance_uid)
            missing = fetcher.missing(series, one)
            self.book.compared(series, listed=len(one.instances), missing=len(missing))
            found = fetcher.fetch(one, missing) if missing else Fetched()
            request = replace(request, fetched=request.fetched + found.taken)
            self.book.answer(request)
            if found.failed or found.gone:
                raise PeerError(found.trouble or f"{name} changed while it was fetched from")
            if name in self._parallel:
                self.book.compared(series, listed=len(one.instances), missing=0)
            else:  # nobody else looks at it
                self.book.settle(series, listed=len(one.instances), stamp=one.stamp)
                fetcher.forget(one.remote_id)
                fetcher.decide_again(one)
        log.info(
            "fetch.study",
            peer=name,
            study_uid=study_uid,
            instances=request.fetched,
            count=request.listed,
        )
        return replace(request, state=RequestState.FETCHED, reason="", explanation="")


def address_of(peer: Peer) -> str:
    """Host of the peer's web address, for the audit."""
    return urlsplit(peer.orthanc_url or peer.dicomweb_url or "").hostname or peer.host


def _verdict(
    peer: Peer, row: SeriesRow, here: set[str], listed: set[str], refusals: Mapping[str, str]
) -> Verdict:
    """Compare by SOP Instance UID what a source lists of a series with what is here."""
    lacking, surplus = listed - here, here - listed
    if lacking - set(refusals):
        why = f"{len(lacking)} of {len(listed)} instances that {peer.name} lists are not here"
        return Verdict(Counts.UNCONFIRMED, INCOMPLETE, why, waits=True)
    if lacking:
        reasons = ", ".join(sorted({refusals[uid] for uid in lacking}))
        why = (
            f"{len(lacking)} of {len(listed)} instances that {peer.name} lists cannot be taken: "
            f"{reasons}"
        )
        return Verdict(Counts.UNCONFIRMED, INCOMPLETE, why)
    if surplus and row.calling_ae_title == sender_of(peer):
        why = f"{len(surplus)} of {len(here)} instances were deleted at {peer.name} meanwhile"
        return Verdict(Counts.UNCONFIRMED, DELETED_AT_SOURCE, why)
    return Verdict(Counts.UNCONFIRMED if surplus else Counts.CONFIRMED)


def _unanswered(
    peer: Peer, series: Sequence[SeriesRow], known: Sequence[SourceSeries], why: str
) -> dict[str, Verdict]:
    """A series that comes from a silent source waits: half of it may still be there."""
    unfinished = {one.series_instance_uid for one in known if one.open or one.missing}
    theirs = {one.series_instance_uid for one in known}
    return {
        row.series_instance_uid: Verdict(Counts.UNCONFIRMED, SOURCE_UNREACHABLE, why, waits=True)
        for row in series
        if row.series_instance_uid in theirs
        and (row.calling_ae_title == sender_of(peer) or row.series_instance_uid in unfinished)
    }


def _graver(one: Verdict, other: Verdict) -> Verdict:
    """Of two sources' verdicts the one that stops more; confirmed by one of them is confirmed."""
    if one.reason or other.reason:
        return max(one, other, key=lambda verdict: (bool(verdict.reason), not verdict.waits))
    return max(one, other, key=lambda verdict: verdict.counts is Counts.CONFIRMED)


def _refused(request: FetchRequest, reason: str, explanation: str) -> FetchRequest:
    return replace(request, state=RequestState.REFUSED, reason=reason, explanation=explanation)


def _anchor(change: Change | None) -> str:
    return "" if change is None else change.anchor


def _end_of(page: ChangePage) -> tuple[int, str]:
    """Cursor and anchor after the last change of a feed."""
    return page.last, _anchor(page.changes[-1] if page.changes else None)


def _time(told: str) -> datetime:
    """Of Orthanc's clock.

    Raises:
        PeerError: It tells the time in a form that we do not know.
    """
    try:
        return datetime.strptime(told, _ORTHANC_TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise PeerError("Orthanc tells the time in an unknown form") from error
