"""Rejection notes on their way to the destinations that hold what was recalled.

`data_dir/recalls/<UID of the note>/` holds the note and `note.json`, which says who is to have it;
it appears by a rename, so whoever sees it sees all of it. A note is sent as results are: looked
for, sent, looked for again, with pauses that survive a restart. The command line writes notes, the
service sends them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from dbos import DBOS, DBOSConfiguredInstance

from config.settings import Destination, Settings
from node.delivery import ARRIVED, ObjectState, deliver
from node.durable import PART_SUFFIX, sync_directory, write_durably
from node.engine import ACTIVE, Engine
from node.ledger import Ledger
from node.outcome import ResultFile
from node.workflow import AGAIN, DONE, REFUSED, ROUTINE, VOID, delivery_queue

log = structlog.get_logger(__name__)

NOTE_FILE = "note.dcm"
ABOUT_FILE = "note.json"


@dataclass(frozen=True, slots=True)
class Note:
    """A rejection note on disk."""

    note_uid: str
    """SOP Instance UID."""
    title: str
    """`patient-safety` or `quality`."""
    pack_digest: str
    jobs: tuple[str, ...]
    sop_instance_uids: tuple[str, ...]
    """What it withdraws."""
    destinations: tuple[str, ...]
    """Names of the peers that are to have it."""
    path: Path


class RecallsFolder:
    """`data_dir/recalls`."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "recalls"

    def keep(self, note: Note, content: bytes) -> None:
        """Put a note where the service finds it. One that is there gets the new destinations."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = self.read(note.note_uid)
        if known is not None:
            both = (*known.destinations, *note.destinations)
            merged = tuple(dict.fromkeys(both))
            about = self._about(known, merged)
            write_durably(self.folder / note.note_uid / ABOUT_FILE, about)
            return
        part = self.folder / f"{note.note_uid}{PART_SUFFIX}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        write_durably(part / NOTE_FILE, content)
        write_durably(part / ABOUT_FILE, self._about(note, note.destinations))
        part.rename(self.folder / note.note_uid)
        sync_directory(self.folder)

    def read(self, note_uid: str) -> Note | None:
        """The note of that UID, or None."""
        folder = self.folder / note_uid
        try:
            about = json.loads((folder / ABOUT_FILE).read_bytes())
        except FileNotFoundError:
            return None
        return Note(
            note_uid=note_uid,
            title=about["title"],
            pack_digest=about["pack_digest"],
            jobs=tuple(about["jobs"]),
            sop_instance_uids=tuple(about["sop_instance_uids"]),
            destinations=tuple(about["destinations"]),
            path=folder / NOTE_FILE,
        )

    def notes(self) -> list[Note]:
        """Every note."""
        found = (self.read(path.parent.name) for path in self.folder.glob(f"*/{ABOUT_FILE}"))
        return sorted((one for one in found if one is not None), key=lambda one: one.note_uid)

    @staticmethod
    def _about(note: Note, destinations: Iterable[str]) -> bytes:
        about = {
            "title": note.title,
            "pack_digest": note.pack_digest,
            "jobs": list(note.jobs),
            "sop_instance_uids": list(note.sop_instance_uids),
            "destinations": list(destinations),
        }
        return json.dumps(about, indent=1).encode()


@DBOS.dbos_class()
class Rejections(DBOSConfiguredInstance):
    """Brings the notes to their destinations."""

    def __init__(self, settings: Settings, ledger: Ledger, engine: Engine) -> None:
        """Register with DBOS: one in a process, before the engine is launched.

        Args:
            settings: Of the site.
            ledger: Where each note stands.
            engine: Drives.
        """
        super().__init__("rejections")
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._folder = RecallsFolder(settings.node.data_dir)

    @DBOS.workflow(name="rejection")
    def rejection(self, note_uid: str, peer: str) -> None:
        """A note to one destination; pauses between attempts survive a restart."""
        plan = self._settings.delivery
        answer = self.attempt(note_uid, peer)
        for number in range(plan.attempts - 1):
            if answer != AGAIN:
                break
            self.pause(plan.first_pause_s * plan.backoff**number)
            answer = self.attempt(note_uid, peer)
        if answer == AGAIN:
            self.give_up_for_now(note_uid, peer)

    @DBOS.step(name="attempt rejection")
    def attempt(self, note_uid: str, peer: str) -> str:
        """One attempt at one destination, written into the ledger."""
        note, destination = self._folder.read(note_uid), self._destination(peer)
        if note is None or destination is None:
            return VOID
        delivered = deliver(
            [ResultFile("rejection", note_uid, note.path)],
            destination,
            self._settings.peer(peer),
            ae_title=self._settings.node.ae_title,
            timeout_s=self._settings.delivery.timeout_s,
        )
        self._ledger.record_rejection(note_uid, peer, delivered.states[note_uid])
        if delivered.arrived:
            log.info("rejection.arrived", peer=peer, objects=len(note.sop_instance_uids))
            return DONE
        log.warning("rejection.missing", peer=peer, why=delivered.message)
        return AGAIN if delivered.worth_another_attempt else REFUSED

    @DBOS.step(name="pause rejection")
    def pause(self, seconds: float) -> None:
        """As `Casework.pause`."""
        time.sleep(seconds)

    @DBOS.step(name="give up for now")
    def give_up_for_now(self, note_uid: str, peer: str) -> None:
        """All attempts used; `resume` begins anew after a while."""
        self._ledger.record_rejection(note_uid, peer, ObjectState.UNREACHABLE)

    def resume(self) -> int:
        """Enqueue whatever note is owed and no workflow works on; how many."""
        count = 0
        stand = self._ledger.rejections()
        pause = timedelta(seconds=self._settings.delivery.retry_held_every_s)
        for note in self._folder.notes():
            for peer in note.destinations:
                state, at = stand.get((note.note_uid, peer), ("", datetime.now(UTC)))
                waits = state == ObjectState.UNREACHABLE and datetime.now(UTC) - at < pause
                if state in ARRIVED or state == ObjectState.REFUSED or waits:
                    continue
                count += self._enqueue(note.note_uid, peer)
        return count

    def _enqueue(self, note_uid: str, peer: str) -> bool:
        destination = self._destination(peer)
        name = f"rejection-{note_uid}.to.{peer}"
        states = self._engine.states(name)
        if destination is None or states.get(name) in ACTIVE:
            return False
        self._engine.forget(states)
        queue = delivery_queue(destination).name
        self._engine.enqueue(queue, name, ROUTINE, self.rejection, note_uid, peer)
        return True

    def _destination(self, peer: str) -> Destination | None:
        found = next((one for one in self._settings.destinations if one.peer == peer), None)
        if found is None or found.confirm != "commitment":
            return found
        # An archive acts on a note and need not keep it: its list is what can be asked.
        return found.model_copy(update={"confirm": "query"})
