"""One SOP Instance UID, two objects: a person says which one counts, and the other one goes.

Until then both are kept and neither is analysed. The service may run meanwhile. Every step may be
cut short and repeated: the file is put in its place before the ledger believes in it, and what is
no longer wanted is deleted last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from config.settings import Settings
from node.audit import Audit, AuditEvent
from node.durable import sync_directory, write_durably
from node.ledger import ConflictRow, Ledger, ReceivedInstance, RetryRefusedError, SeriesRow
from node.sitekey import site_key
from node.spool import RefusedObjectError, Spool

Keep = Literal["stored", "received"]


def resolve(
    settings: Settings,
    ledger: Ledger,
    row: SeriesRow,
    *,
    keep: Keep,
    digest: str = "",
    user: str,
) -> list[dict[str, Any]]:
    """End every conflict of a series; it is decided again once its study is silent.

    Args:
        settings: Of the site.
        ledger: Where the conflict stands.
        row: The series.
        keep: The object that came first, or the one that came later.
        digest: Of several later ones under one UID: the beginning of the digest of the one to keep.
        user: Who decided.

    Returns:
        For each instance, the digest of what was kept and of what was deleted.

    Raises:
        RetryRefusedError: There is no conflict, or it is not said which of several is to be kept,
            or the object to be kept is gone or damaged.
    """
    conflicts = ledger.conflicts_of(row.series_instance_uid)
    if not conflicts:
        raise RetryRefusedError(f"series {row.series_instance_uid} has no conflict")
    spool = Spool(settings.node.data_dir / "spool")
    audit = Audit(settings.node.data_dir / "audit", site_key(settings.node.data_dir))
    by_uid: dict[str, list[ConflictRow]] = {}
    for one in conflicts:
        by_uid.setdefault(one.sop_instance_uid, []).append(one)
    # All of them are looked at before the first is changed.
    chosen: dict[str, ReceivedInstance] = {}
    for uid, found in by_uid.items():
        if keep == "received":
            chosen[uid] = _received(spool, found, digest)
        else:
            _require_stored(spool, found)
    told = []
    for uid, found in by_uid.items():
        kept = chosen.get(uid)
        before = found[0].stored
        if kept is not None:
            _put(spool, kept, next(one for one in found if one.digest == kept.digest))
        ledger.resolve_conflict(uid, kept)
        _delete(spool, [one.path for one in found])
        if kept is not None and kept.path != before.path:
            _delete(spool, [before.path])
        kept_digest = before.digest if kept is None else kept.digest
        others = sorted({before.digest, *(one.digest for one in found)} - {kept_digest})
        audit.append(
            AuditEvent.OPERATOR,
            what="resolve",
            user=user,
            keep=keep,
            study=row.study_instance_uid,
            series=row.series_instance_uid,
            instance=uid,
            kept=kept_digest,
            deleted=" ".join(others),
        )
        told.append({"sop_instance_uid": uid, "kept": kept_digest, "deleted": others})
    return told


def _require_stored(spool: Spool, found: Sequence[ConflictRow]) -> None:
    stored = found[0].stored
    if not (spool.folder / stored.path).is_file():
        raise RetryRefusedError(f"the stored object {stored.sop_instance_uid} is not here any more")


def _received(spool: Spool, found: Sequence[ConflictRow], digest: str) -> ReceivedInstance:
    matching = [one for one in found if one.digest.startswith(digest)]
    if len(matching) != 1:
        known = ", ".join(one.digest[:16] for one in found)
        raise RetryRefusedError(
            f"{len(matching)} of the objects that came later under {found[0].sop_instance_uid} are "
            f"meant; name one by --digest: {known}"
        )
    (one,) = matching
    source = one.path if (spool.folder / one.path).is_file() else one.stored.path
    try:
        file = spool.describe(source)
    except (OSError, RefusedObjectError) as error:
        raise RetryRefusedError(f"the object {one.path.name} cannot be read: {error}") from error
    if file.digest != one.digest:
        raise RetryRefusedError(f"the object {one.path.name} is not what was received")
    return ReceivedInstance(
        study_instance_uid=file.identity.study_instance_uid,
        series_instance_uid=file.identity.series_instance_uid,
        sop_instance_uid=file.identity.sop_instance_uid,
        sop_class_uid=file.identity.sop_class_uid,
        digest=file.digest,
        path=file.identity.path,
        calling_ae_title=file.calling_ae_title,
    )


def _put(spool: Spool, kept: ReceivedInstance, conflict: ConflictRow) -> None:
    """A copy under the final name; the one that was kept aside stays until the ledger knows."""
    aside = spool.folder / conflict.path
    if aside.is_file():  # else a resolving before this one was cut short after the next line
        final = spool.folder / kept.path
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(final, aside.read_bytes())


def _delete(spool: Spool, paths: Sequence[Path]) -> None:
    for path in paths:
        file = spool.folder / path
        file.unlink(missing_ok=True)
        if file.parent.is_dir():
            sync_directory(file.parent)
