"""An intake that follows a real Orthanc, without a service around it: the test moves its clock."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from config.settings import CompletenessSettings, NodeSettings, Peer, Settings, Source
from node.archive import LOOPBACK, Orthanc
from node.audit import Audit
from node.completeness import QuietClock
from node.follow import FollowedSources, Follower
from node.intake import Intake
from node.ledger import Job, Ledger, SeriesRow
from node.sitekey import site_key
from node.spool import Spool

QUIET_S, LONGEST_WAIT_S = 30.0, 300.0
PATIENCE_S = 30.0  # Orthanc calls a series stable after two seconds


def store(archive: Orthanc, paths: Iterable[Path]) -> None:
    for path in paths:
        archive.request("POST", "/instances", path.read_bytes())


def delete_study(archive: Orthanc, study_instance_uid: str) -> None:
    for study in archive.get("/studies?expand"):
        if study["MainDicomTags"]["StudyInstanceUID"] == study_instance_uid:
            archive.request("DELETE", f"/studies/{study['ID']}")


class FollowSite:
    """Ledger, spool, intake and sources on one folder; the same folder again is a restart."""

    def __init__(
        self,
        folder: Path,
        archive: Orthanc,
        peer: dict[str, Any],
        **source: Any,  # noqa: ANN401  # of Source
    ) -> None:
        self.password = folder / "password"
        folder.mkdir(exist_ok=True)
        self.password.write_text(archive.password)
        web = {"orthanc_url": archive.url, **peer}
        self.settings = Settings(
            node=NodeSettings(data_dir=folder / "data", reserve_mb=0),
            peers=(
                Peer(
                    name="pacs",
                    ae_title=archive.ae_title,
                    host=LOOPBACK,
                    port=archive.dicom_port,
                    user=archive.user,
                    password_file=self.password,
                    **web,
                ),
            ),
            sources=(Source(peer="pacs", **source),) if web["orthanc_url"] else (),
            completeness=CompletenessSettings(
                quiet_period_s=QUIET_S, longest_wait_s=LONGEST_WAIT_S
            ),
        )
        data_dir = self.settings.node.data_dir
        self.now_s = 0.0
        self.enqueued: list[Job] = []
        self.ledger = Ledger(data_dir / "intake.sqlite")
        self.spool = Spool(data_dir / "spool")
        self.audit = Audit(data_dir / "audit", site_key(data_dir))
        self.intake = Intake(
            self.settings,
            self.ledger,
            self.spool,
            self.audit,
            pack_digest="a" * 64,
            settings_digest="b" * 64,
            enqueue=self.enqueued.append,
            clock=QuietClock(lambda: self.now_s),
        )
        self.sources = FollowedSources(
            self.settings,
            self.ledger,
            self.spool,
            self.intake,
            self.audit,
            clock=lambda: self.now_s,
        )
        self.intake.sources = self.sources

    def close(self) -> None:
        self.sources.close()
        self.ledger.close()

    @property
    def follower(self) -> Follower:
        (follower,) = self.sources.followers
        return follower

    def look(self) -> None:
        self.follower.look()

    def bring(self) -> None:
        """Look until nothing is missing; Orthanc may still call a series growing."""
        self.look()
        while any(
            one.remote_id not in self.follower._quiet
            for one in self.sources.book.open_series("pacs", 1000)
        ):
            assert not self.trouble(), self.trouble()
            self.look()

    def settle(self) -> None:
        """Look until nothing is left to look at; real seconds, since Orthanc has its own clock."""
        deadline = time.monotonic() + PATIENCE_S
        self.look()
        while self.sources.book.count_open("pacs"):
            assert time.monotonic() < deadline, "series stay open"
            time.sleep(0.1)
            self.look()

    def pass_time(self, seconds: float = QUIET_S) -> list[Job]:
        self.intake.sweep()  # the first question starts the clock of a study
        self.now_s += seconds
        return self.intake.sweep()

    def held(self) -> set[str]:
        return self.ledger.sop_instance_uids()

    def only_series(self) -> SeriesRow:
        (row,) = self.ledger.all_series()
        return row

    def trouble(self) -> str:
        standing = self.sources.book.standing("pacs")
        return "" if standing is None else standing.trouble
