"""A cohort out of a real Orthanc: what is fetched, called by pseudonyms, and read by training."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from follow_site import store
from pydicom import dcmread
from pydicom.dataset import Dataset

from node import cohort
from node.archive import LOOPBACK, Orthanc, find_orthanc
from node.cli import main
from node.sitekey import site_key, tag
from tests.training.cohorts import write_seg
from training.case_inputs import CohortRules
from training.cohort import read_cohort

pytestmark = pytest.mark.pacs

HEAD_MM = (6.5, 4.0, 5.0)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    archive = Orthanc(tmp_path_factory.mktemp("archive") / "orthanc")
    archive.start()
    yield archive
    archive.kill()


@pytest.fixture
def config(tmp_path: Path, orthanc: Orthanc) -> Path:
    (tmp_path / "password").write_text(orthanc.password)
    path = tmp_path / "site.toml"
    path.write_text(
        f"[node]\ndata_dir = '{tmp_path}/data'\n[[peers]]\nname = 'pacs'\n"
        f"ae_title = '{orthanc.ae_title}'\nhost = '{LOOPBACK}'\nport = {orthanc.dicom_port}\n"
        f"orthanc_url = '{orthanc.url}'\nuser = '{orthanc.user}'\n"
        f"password_file = '{tmp_path}/password'\n"
    )
    return path


def drawn_by(manufacturer: str, time: str) -> Callable[[Dataset], None]:
    def change(seg: Dataset) -> None:
        seg.Manufacturer, seg.ContentDate, seg.ContentTime = manufacturer, "20250101", time
        seg.ContentCreatorName = "Secret^Reader"
        seg.SeriesInstanceUID = f"{seg.SeriesInstanceUID[:50]}.{time}"
        seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = (
            f"{seg.SOPInstanceUID[:50]}.{time}"
        )

    return change


def test_studies_become_a_manifest_that_training_reads(
    tmp_path: Path,
    orthanc: Orthanc,
    config: Path,
    make_flair_series: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret: dict[str, Any] = {"patient_name": "Secret^Person", "patient_id": "SECRET-7"}
    told = {"PatientBirthDate": "19700102", "InstitutionName": "Secret House", "PatientSex": "F"}
    flair = make_flair_series(
        spacing_mm=HEAD_MM, overrides={**told, "PatientAge": "045Y"}, **secret
    )
    t1 = make_flair_series(
        spacing_mm=HEAD_MM,
        series_instance_uid="1.2.3.4",
        study_instance_uid=flair.study_instance_uid,
        overrides={"RepetitionTime": 500, "EchoTime": 10, "InversionTime": None},
        **secret,
    )
    alone = make_flair_series(
        spacing_mm=HEAD_MM,
        study_instance_uid="1.2.3.5",
        overrides={"RepetitionTime": 500, "EchoTime": 10, "InversionTime": None},
        patient_id="OTHER",
    )
    mask = np.zeros(flair.voxels.shape, bool)
    mask[4:6, 20:24, 10:14] = True
    segs = [
        write_seg(tmp_path / f"{number}.dcm", flair, mask, drawn_by(maker, f"{number}0000"))
        for number, maker in ((13, "House of Readers"), (12, "House of Readers"), (11, "flairnode"))
    ]
    store(orthanc, [*flair.paths, *t1.paths, *alone.paths, *segs])
    studies = tmp_path / "studies.txt"
    studies.write_text(f"# ours\n{flair.study_instance_uid}\n1.2.3.5\n1.2.3.6\n")

    def fetch(studies: str, *more: str) -> int:
        words = ["cohort", "fetch", "--config", str(config), "--studies", studies, *more]
        return main([*words, "--output", str(tmp_path / "cohort")])

    assert fetch(str(studies), "--json") == 3
    said = json.loads(capsys.readouterr().out)
    ends = [(row["state"], row["reason"]) for row in said["rows"]]
    assert ends == [("fetched", ""), ("refused", "no-flair"), ("refused", "study-missing")]
    key = site_key(tmp_path / "data")
    patient, session = f"P{tag(key, 'SECRET-7^')}", f"S{tag(key, flair.study_instance_uid)}"
    (case,) = read_cohort(tmp_path / "cohort/cohort.csv")
    assert (case.patient, case.session, case.sex, case.age) == (patient, session, "F", 45)
    files = training_files(tmp_path / "cohort")
    image = files.image()
    assert image.volume.grid.shape == flair.voxels.shape
    masks = files.masks(image)
    assert (masks.reference == mask).all()
    assert masks.second is not None  # of the two readers; our own result is nobody's reference
    # The one of 12 o'clock was drawn first.
    first = dcmread(tmp_path / f"cohort/cases/{case.name}/reader1.dcm")
    assert first.ContentTime == "120000"
    for path in (tmp_path / "cohort").rglob("*"):
        if path.is_file():
            assert b"ecret" not in path.read_bytes(), path
            assert b"19700102" not in path.read_bytes(), path
    # What a person fills in stays, and what is here is not fetched again.
    lines = (tmp_path / "cohort/cohort.csv").read_text().splitlines()
    (tmp_path / "cohort/cohort.csv").write_text(f"{lines[0]},phenotype\n{lines[1]},RR\n")
    taken: list[Any] = []
    monkeypatch.setattr(cohort.Gatherer, "_bring", lambda *a: taken.append(a))
    assert fetch(str(studies)) == 3
    assert taken == []
    with (tmp_path / "cohort/cohort.csv").open() as file:
        assert [line["phenotype"] for line in csv.DictReader(file)] == ["RR"]


def training_files(folder: Path) -> Any:  # noqa: ANN401
    from tests.training.test_validate_cohort import manifest_with
    from training.validate_cohort import choose_cases

    (case,) = choose_cases(folder / "cohort.csv", CohortRules(), manifest_with()).cases
    return case.files


def test_a_query_finds_its_studies(
    tmp_path: Path, orthanc: Orthanc, config: Path, make_flair_series: Callable[..., Any]
) -> None:
    made = [
        make_flair_series(
            spacing_mm=HEAD_MM,
            patient_id=f"Q{number}",
            overrides={"StudyDescription": f"quest {number}"},
        )
        for number in (1, 2)
    ]
    store(orthanc, [path for one in made for path in one.paths])
    words = ["cohort", "fetch", "--config", str(config), "--output", str(tmp_path / "out")]
    assert main([*words, "--studies", "StudyDescription=QUEST*,ModalitiesInStudy=MR"]) == 0
    cases = read_cohort(tmp_path / "out/cohort.csv")
    assert len(cases) == 2
    assert cases[0].masks == ()  # nobody drew: the note says so
    orthanc.kill()
    assert main([*words, "--studies", "StudyDescription=QUEST*"]) == 3
    assert len(read_cohort(tmp_path / "out/cohort.csv")) == 2
    orthanc.start()


@pytest.mark.parametrize(
    ("studies", "said"), [("no-file", "neither a file"), ("listed", "entry 1 of the file")]
)
def test_studies_that_cannot_be_meant_are_wrong_arguments(
    tmp_path: Path, config: Path, studies: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "listed").write_text("Miller, 1970\n")
    given = studies if studies == "no-file" else str(tmp_path / studies)
    words = ["cohort", "fetch", "--config", str(config), "--studies", given]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
