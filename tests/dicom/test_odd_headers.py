"""Headers that break every rule: an answer or a coded refusal, never a traceback."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from config.settings import SelectionSettings
from dicom.errors import StudyError
from dicom.identity import identity_digest, moment, normalised_header
from dicom.series import read_study
from dicom.volume import read_volume, slice_headers
from pipeline.selection import choose
from tests.enhanced import write_enhanced

Make = Callable[..., Any]

VRS = (
    "AE", "AS", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OW", "PN", "SH", "SL",
    "SQ", "SS", "ST", "TM", "UI", "UL", "UN", "US", "UT",
)  # fmt: skip
VALUES = (
    b"", b" ", b"\0\0", b"\\", b"\\\\\\", b"nan", b"1e999", b"-", b"1\\2\\3\\4\\5\\6\\7", b"NONE",
    b"\xff\xfe\xfd\xfc", b"X" * 300, b"9" * 70, b"2024-13-45", b"\x1b$B;3ED\x1b(B", b"1.2.3..4",
)  # fmt: skip


def damage(image: Dataset, chance: random.Random) -> str:
    """One thing wrong with one element; says which."""
    tags = [tag for tag in image.keys() if tag.group != 0x7FE0]  # noqa: SIM118  # not the elements
    tag = chance.choice(tags)
    kind = chance.choice(("value", "random", "vr", "gone", "sequence", "private", "string"))
    match kind:
        case "value":
            put(image, tag, str(image[tag].VR), chance.choice(VALUES))
        case "random":
            put(image, tag, str(image[tag].VR), chance.randbytes(chance.choice((2, 8, 64))))
        case "vr":
            put(image, tag, chance.choice(VRS), chance.choice(VALUES))
        case "gone":
            del image[tag]
        case "sequence":
            image.add_new(tag, "SQ", Sequence([Dataset()] * chance.choice((0, 1, 3))))
        case "private":
            tag = Tag(chance.choice((0x0009, 0x0029, 0x2001)), chance.randrange(0x1000, 0xFFFF))
            put(image, tag, chance.choice(VRS), chance.choice(VALUES))
        case "string":
            put(image, tag, "LO", chance.choice(VALUES) * 3)
    return f"{kind} {tag}"


def put(image: Dataset, tag: BaseTag, vr: str, value: bytes) -> None:
    value += b" " * (len(value) % 2)
    image[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def whole_way(folder: Path) -> str:
    """Read, choose, decode, take over: the reason of a refusal, or "volume"."""
    try:
        study = read_study(folder)
        choose(study, SelectionSettings()).as_json()
        for series in study.series:
            volume = read_volume(series)
            headers = slice_headers(series, volume)
            moment(headers)
            for header in headers:
                identity_digest(header)
                normalised_header(header)
    except StudyError as error:
        return error.reason
    return "volume"


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third slice of a real FLAIR with the header of a real scanner."""
    folder = tmp_path_factory.mktemp("real")
    source = shared_data / "dicom_samples" / "siemens_aera_study" / "FLAIR_t2_flair_tra"
    in_order = sorted(source.iterdir(), key=lambda path: float(dcmread(path).SliceLocation))
    for path in in_order[::3]:
        shutil.copyfile(path, folder / path.name)
    assert whole_way(folder) == "volume"
    return folder


def rewrite(path: Path, change: Callable[[Dataset], str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = dcmread(path)
        said = change(image)
        image.save_as(path, enforce_file_format=False)
    return said


@pytest.mark.parametrize("seed", range(6))
def test_one_odd_element_in_a_slice_or_in_all_is_read_or_refused(
    real: Path, tmp_path: Path, seed: int
) -> None:
    ends = set()
    for number in range(10):
        folder = tmp_path / str(number)
        shutil.copytree(real, folder)
        paths = sorted(folder.iterdir())
        for path in paths if number % 2 else paths[3:4]:
            rewrite(path, lambda image, n=number: damage(image, random.Random(100 * seed + n)))  # type: ignore[misc]  # noqa: S311
        ends.add(whole_way(folder))
    assert ends


def test_flipped_bytes_in_a_header_are_read_or_refused(real: Path, tmp_path: Path) -> None:
    for seed in range(40):
        chance = random.Random(seed)  # noqa: S311  # seeded on purpose
        folder = tmp_path / str(seed)
        shutil.copytree(real, folder)
        path = sorted(folder.iterdir())[2]
        content = bytearray(path.read_bytes())
        for _ in range(chance.randrange(1, 6)):
            content[chance.randrange(128, 6000)] = chance.randrange(256)
        path.write_bytes(content)
        whole_way(folder)


def test_odd_functional_groups_are_read_or_refused(make_flair_series: Make, tmp_path: Path) -> None:
    write_enhanced(make_flair_series(), tmp_path / "e", style="per-frame")
    for seed in range(40):
        chance = random.Random(seed)  # noqa: S311  # seeded on purpose

        def in_a_group(image: Dataset, chance: random.Random = chance) -> str:
            frame = chance.choice(image.PerFrameFunctionalGroupsSequence)
            group = chance.choice(list(frame))
            return damage(chance.choice((frame, group.value[0])), chance)

        folder = tmp_path / str(seed)
        shutil.copytree(tmp_path / "e", folder)
        rewrite(folder / "0.dcm", in_a_group)
        whole_way(folder)


def test_long_values_and_private_elements_do_not_stop_a_volume(
    make_flair_series: Make, tmp_path: Path
) -> None:
    made = make_flair_series()

    def long(image: Dataset) -> str:
        put(image, Tag("SeriesDescription"), "LO", b"t2 flair " * 20)
        put(image, Tag("ProtocolName"), "LO", b"P" * 201)
        put(image, Tag("StudyDescription"), "LO", b"head " * 40)
        put(image, Tag(0x0029, 0x1010), "OB", bytes(5000))
        put(image, Tag(0x0019, 0x10AA), "UN", b"\xff" * 30)
        put(image, Tag("AccessionNumber"), "SH", b"")
        put(image, Tag("ReferringPhysicianName"), "PN", b"")
        put(image, Tag("EchoTrainLength"), "IS", b"20\\21\\22")
        return ""

    for path in made.paths:
        rewrite(path, long)
    assert whole_way(made.folder) == "volume"
    header = normalised_header(made.series.header)
    assert header.StudyDescription == ("head " * 40)[:64]
    selection = choose(read_study(made.folder), SelectionSettings())
    assert selection.selected == made.series_instance_uid
