from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicom.uids import result_uid


def test_the_same_parts_give_the_same_uid_for_ever() -> None:
    # Written down: another value would double every result that was ever sent.
    assert result_uid("a", "b") == "2.25.277200066293738307398931517731565023593"


def test_where_a_part_ends_matters() -> None:
    assert result_uid("ab", "c") != result_uid("a", "bc")
    assert result_uid("a", "") != result_uid("a")
    assert result_uid("1:a") != result_uid("a")


def test_order_matters() -> None:
    assert result_uid("seg", "sr") != result_uid("sr", "seg")


def test_nothing_has_no_uid() -> None:
    with pytest.raises(ValueError, match="nothing"):
        result_uid()


@given(st.lists(st.text(), min_size=1))
def test_every_uid_is_valid(parts: list[str]) -> None:
    uid = UID(result_uid(*parts))
    assert uid.is_valid
    assert len(uid) <= 64
