"""Which object is meant, from study to instance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DocumentReference:
    """An object as others refer to it (PS3.3 table C.17-3, Hierarchical SOP Instance Reference)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
