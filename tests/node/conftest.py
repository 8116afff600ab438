"""An intake on a folder of its own, and objects as a sender hands them over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import CompletenessSettings, NodeSettings, Peer, Settings
from dicom.network.scp import ReceivedObject
from node.audit import Audit
from node.completeness import QuietClock
from node.intake import Intake
from node.ledger import Job, Ledger, SeriesRow
from node.sitekey import site_key
from node.spool import Spool

PACK_DIGEST, SETTINGS_DIGEST = "a" * 64, "b" * 64
QUIET_S, LONGEST_WAIT_S = 30.0, 300.0


def as_sent(path: Path, calling_ae_title: str = "PACS") -> ReceivedObject:
    """A file as a C-STORE request carries it."""
    content = path.read_bytes()
    meta = dcmread(path, stop_before_pixels=True).file_meta
    # 128 + "DICM" + (0002,0000) UL 4: the group length counts from behind itself.
    start = 144 + int.from_bytes(content[140:144], "little")
    return ReceivedObject(
        sop_class_uid=str(meta.MediaStorageSOPClassUID),
        sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        transfer_syntax_uid=str(meta.TransferSyntaxUID),
        dataset=content[start:],
        calling_ae_title=calling_ae_title,
        address="127.0.0.1",
    )


@dataclass(slots=True)
class IntakeBench:
    """An intake with a clock that the test moves."""

    settings: Settings
    ledger: Ledger
    spool: Spool
    audit: Audit
    intake: Intake
    enqueued: list[Job]
    now_s: list[float] = field(default_factory=lambda: [0.0])

    def send(self, *paths: Path) -> list[int]:
        return [self.intake.on_store(as_sent(path)) for path in paths]

    def pass_time(self, seconds: float) -> list[Job]:
        self.now_s[0] += seconds
        return self.intake.sweep()

    def close(self, *paths: Path) -> list[Job]:
        """Send, and wait for the end of the quiet period."""
        assert set(self.send(*paths)) <= {0}
        return self.pass_time(QUIET_S)

    def only_series(self) -> SeriesRow:
        (row,) = self.ledger.all_series()
        return row


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., IntakeBench]]:
    """Intakes below tmp_path; the same `data_dir` again is a restart of the same node."""
    ledgers: list[Ledger] = []

    def make(
        data_dir: Path | None = None,
        *,
        reserve_mb: int = 0,
        peers: tuple[Peer, ...] = (),
        query_peer: str | None = None,
        **sections: Any,  # noqa: ANN401  # sections of the settings
    ) -> IntakeBench:
        data_dir = data_dir or tmp_path / "data"
        settings = Settings(
            node=NodeSettings(data_dir=data_dir, reserve_mb=reserve_mb),
            peers=peers,
            completeness=CompletenessSettings(
                quiet_period_s=QUIET_S, longest_wait_s=LONGEST_WAIT_S, query_peer=query_peer
            ),
            **sections,
        )
        ledger = Ledger(data_dir / "intake.sqlite")
        ledgers.append(ledger)
        spool = Spool(data_dir / "spool")
        audit = Audit(data_dir / "audit", site_key(data_dir))
        enqueued: list[Job] = []
        now_s = [0.0]
        intake = Intake(
            settings,
            ledger,
            spool,
            audit,
            pack_digest=PACK_DIGEST,
            settings_digest=SETTINGS_DIGEST,
            enqueue=enqueued.append,
            clock=QuietClock(lambda: now_s[0]),
        )
        return IntakeBench(settings, ledger, spool, audit, intake, enqueued, now_s)

    yield make
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def bench(make_bench: Callable[..., IntakeBench]) -> IntakeBench:
    return make_bench()


@pytest.fixture
def sent() -> Callable[..., ReceivedObject]:
    """A file as a C-STORE request carries it."""
    return as_sent
