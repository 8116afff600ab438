"""Results under judges that know nothing of us: dicom3tools, dcmqi and DCMTK."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from PIL import Image
from scipy import ndimage

from config.settings import SelectionSettings
from dicom.series import Series, read_series, read_study
from dicom.volume import Grid, read_volume, stack_grid
from pipeline.key_images import region_in_words
from pipeline.note import Refusal, build_note
from pipeline.results import ResultObject, build_results
from pipeline.selection import choose
from tests.enhanced import write_enhanced
from tests.pipeline.analysed import (
    SETTINGS,
    analysed,
    analysis_of,
    anatomy_of_three,
    no_lesions,
    pack,
    three_lesions,
)

Make = Callable[..., Any]
Labels = npt.NDArray[np.int32]

DCIODVFY, DCENTVFY, DSRDUMP = "/usr/bin/dciodvfy", "/usr/bin/dcentvfy", "/usr/bin/dsrdump"
DCM2PDF, DCM2PNM = "/usr/bin/dcm2pdf", "/usr/bin/dcm2pnm"
PDFTOTEXT = "/usr/bin/pdftotext"
ALL_KINDS = ("key-image", "pdf", "probability")
VENV = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, (DCIODVFY, DCENTVFY, DSRDUMP, DCM2PDF, DCM2PNM, PDFTOTEXT))),
    reason="apt-get install dicom3tools dcmtk poppler-utils",
)


def run(*command: str | Path) -> str:
    done = subprocess.run(  # programs by full path
        [str(part) for part in command], capture_output=True, check=False, timeout=50
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, said
    return said


def complaints(program: str, *files: Path) -> list[str]:
    done = subprocess.run([program, *map(str, files)], capture_output=True, check=False, timeout=50)
    said = (done.stdout + done.stderr).decode(errors="replace")
    return [line for line in said.splitlines() if "Error" in line]


def written(results: tuple[ResultObject, ...], folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for result in results:
        number = f"-{result.dataset.InstanceNumber}" if result.kind == "key-image" else ""
        paths[f"{result.kind}{number}"] = folder / f"{result.kind}{number}.dcm"
        paths[f"{result.kind}{number}"].write_bytes(result.content)
    return paths


def dcmqi_labels(seg: Path, grid: Grid, folder: Path) -> Labels:
    """What segimage2itkimage makes of a Segmentation, put on our grid by its own geometry."""
    folder.mkdir()
    run(VENV / "segimage2itkimage", "--inputDICOM", seg, "--outputDirectory", folder,
        "--outputType", "nrrd", "--mergeSegments")  # fmt: skip
    (file,) = folder.glob("*.nrrd")
    labels = np.zeros(grid.shape, np.int32)
    found, on_ours = itk_voxels(file, grid, 0)
    labels[tuple(on_ours.T)] = found
    return labels


def dcmqi_probability(parametric_map: Path, grid: Grid, folder: Path) -> npt.NDArray[np.float32]:
    """What paramap2itkimage makes of a Parametric Map, put on our grid by its own geometry."""
    folder.mkdir()
    run(VENV / "paramap2itkimage", "--inputDICOM", parametric_map, "--outputDirectory", folder,
        "--outputType", "nrrd")  # fmt: skip
    (file,) = folder.glob("*.nrrd")
    probability = np.full(grid.shape, np.nan, np.float32)
    found, on_ours = itk_voxels(file, grid, -1)
    probability[tuple(on_ours.T)] = found
    return probability


def itk_voxels(
    file: Path, grid: Grid, above: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int_]]:
    """Values above a limit, and where they lie on our grid by the geometry of the file."""
    image: Any = SimpleITK.ReadImage(str(file))
    array = SimpleITK.GetArrayFromImage(image)  # (slice, row, column) of its own grid
    # Its axes, in (slice, row, column) order, and its origin, in ours.
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    theirs = np.eye(4)
    theirs[:3, :3], theirs[:3, 3] = axes[:, ::-1], image.GetOrigin()
    to_ours = np.linalg.inv(grid.affine) @ theirs
    indices = np.argwhere(array > above)
    on_ours = indices @ to_ours[:3, :3].T + to_ours[:3, 3]
    nearest = np.rint(on_ours).astype(int)
    # Of a voxel. Their spacing between slices is a rounded decimal string.
    assert np.abs(on_ours - nearest).max() < 1e-3
    return array[tuple(indices.T)], nearest


def tid1500_numbers(sr: Path, folder: Path) -> dict[tuple[int, str], float]:
    """(segment, code) -> value of every measurement that tid1500reader finds; 0 for the totals."""
    output = folder / "tid1500.json"
    run(VENV / "tid1500reader", "--inputDICOM", sr, "--outputMetadata", output)
    found: dict[tuple[int, str], float] = {}
    for group in json.loads(output.read_text(encoding="utf-8"))["Measurements"]:
        for item in group.get("measurementItems", ()):
            key = (int(group.get("ReferencedSegment", 0)), item["quantity"]["CodeValue"])
            assert key not in found
            found[key] = float(item["value"])
    return found


def judge(
    series: Series, labels: Labels, folder: Path, *, regions: bool = False
) -> dict[str, Path]:
    """Everything a judge can say of the results of one series."""
    grid, _ = stack_grid(series)
    analysis = analysed(series, labels)
    if regions:
        analysis = analysis_of(analysis.volume, labels, anatomy=anatomy_of_three(analysis.volume))
    results = build_results(series, analysis, pack(), SETTINGS, ALL_KINDS)
    paths = written(results, folder)
    for path in paths.values():
        assert complaints(DCIODVFY, path) == []
    # dcentvfy compares names as bytes, so only sources in UTF-8 can be held against our results.
    utf_8 = (
        series.header.SpecificCharacterSet == "ISO_IR 192"
        or str(series.header.PatientName).isascii()
    )
    sources = [instance.path for instance in series.instances] if utf_8 else []
    assert complaints(DCENTVFY, *paths.values(), *sources) == []
    assert "Imaging Measurement Report" in run(DSRDUMP, "+Pc", paths["sr"])

    numbers = tid1500_numbers(paths["sr"], folder)
    voxel_ml = abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    held = np.zeros(grid.shape, np.int32)
    if "seg" in paths:
        held = dcmqi_labels(paths["seg"], grid, folder / "dcmqi")
        np.testing.assert_array_equal(held, labels)
    else:
        assert not labels.any()
    count = int(labels.max())
    assert numbers[0, "246206008"] == count
    assert numbers[0, "118565006"] == pytest.approx(np.count_nonzero(held) * voxel_ml, abs=6e-6)
    measured = {segment for segment, code in numbers if code == "118565006" and segment}
    assert measured == set(range(1, count + 1))
    for number in measured:
        volume_ml = np.count_nonzero(held == number) * voxel_ml
        assert numbers[number, "118565006"] == pytest.approx(volume_ml, abs=6e-6)
    probability = dcmqi_probability(paths["probability"], grid, folder / "map")
    np.testing.assert_array_equal(probability, analysis.lesions.probability)
    named = [region_in_words(lesion.region) for lesion in analysis.findings.lesions]
    judge_pictures_and_document(results, paths, numbers, named, folder)
    return paths


def judge_pictures_and_document(
    results: tuple[ResultObject, ...],
    paths: dict[str, Path],
    numbers: dict[tuple[int, str], float],
    regions: list[str],
    folder: Path,
) -> None:
    """DCMTK draws the key images as they were drawn; poppler finds the numbers of the report."""
    for result in results:
        if result.kind == "key-image":
            path = paths[f"key-image-{result.dataset.InstanceNumber}"]
            run(DCM2PNM, path, path.with_suffix(".ppm"))
            drawn = np.array(Image.open(path.with_suffix(".ppm")))
            np.testing.assert_array_equal(drawn, result.dataset.pixel_array)
    run(DCM2PDF, paths["pdf"], folder / "report.pdf")
    (document,) = (result.dataset for result in results if result.kind == "pdf")
    assert (folder / "report.pdf").read_bytes() == document.EncapsulatedDocument
    said = " ".join(run(PDFTOTEXT, "-layout", folder / "report.pdf", "-").split())
    assert f"{numbers[0, '118565006']:.2f} ml {numbers[0, '246206008']:.0f} " in said
    for (number, code), value in numbers.items():
        if number and code == "118565006":
            assert re.search(rf" {number} {regions[number - 1]} {value:.3f} ", said)


def test_judges_agree_on_an_oblique_anisotropic_phantom(
    make_flair_series: Make, tmp_path: Path
) -> None:
    judge(make_flair_series().series, three_lesions(), tmp_path)


def test_judges_agree_on_regions_in_a_scheme_of_our_own(
    make_flair_series: Make, tmp_path: Path
) -> None:
    paths = judge(make_flair_series().series, three_lesions(), tmp_path, regions=True)
    printed = run(DSRDUMP, "+U8", "+Pc", paths["sr"])
    for said in (
        '(PERIVENTRICULAR,99FLAIRNODE,"Periventricular")',
        '(JUXTACORTICAL,99FLAIRNODE,"Juxtacortical or cortical")',
        '(INFRATENTORIAL,99FLAIRNODE,"Infratentorial")',
        '(68523003,SCT,"Cerebral White Matter")',
    ):
        assert printed.count(said) == 1
    warned = subprocess.run([DCIODVFY, paths["sr"]], capture_output=True, check=False, timeout=50)
    # It knows no private scheme, declared or not, and finds nothing else to say of ours.
    coding = [line for line in warned.stderr.decode().splitlines() if "Coding" in line]
    assert {line.split(" for ")[0] for line in coding} == {
        "Warning - Unrecognized defined term <99FLAIRNODE>"
    }


def test_judges_agree_on_another_obliquity_and_a_single_lesion(
    make_flair_series: Make, tmp_path: Path
) -> None:
    labels = (three_lesions() == 1).astype(np.int32)
    made = make_flair_series(degrees_about_xyz=(-31.0, 22.0, -38.0), spacing_mm=(3.3, 0.9, 0.45))
    judge(made.series, labels, tmp_path)


@pytest.mark.parametrize(
    "degrees", [(0.0, 90.0, 0.0), (84.0, 3.0, -5.0)], ids=["sagittal", "coronal"]
)
def test_judges_agree_on_sagittal_and_coronal_slices(
    make_flair_series: Make, tmp_path: Path, degrees: tuple[float, float, float]
) -> None:
    made = make_flair_series(degrees_about_xyz=degrees, spacing_mm=(1.1, 0.9, 0.75))
    judge(made.series, three_lesions(), tmp_path)


def test_judges_agree_that_nothing_was_found(make_flair_series: Make, tmp_path: Path) -> None:
    paths = judge(make_flair_series().series, no_lesions(), tmp_path)
    assert set(paths) == {"sr", "key-image-1", "pdf", "probability"}


def test_judges_agree_when_slices_arrive_in_reverse(
    make_flair_series: Make, tmp_path: Path
) -> None:
    made = make_flair_series(instance_numbers=range(10, 0, -1))
    judge(made.series, three_lesions(), tmp_path)


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("order", [None, tuple(range(9, -1, -1))])
def test_judges_agree_on_enhanced_multi_frame_sources(
    make_flair_series: Make, tmp_path: Path, order: tuple[int, ...] | None, objects: int
) -> None:
    series = write_enhanced(make_flair_series(), tmp_path / "e", order=order, objects=objects)
    paths = judge(series, three_lesions(), tmp_path)
    dumped = run("/usr/bin/dcmdump", "+P", "0008,1160", paths["seg"])
    assert len(re.findall(r"ReferencedFrameNumber", dumped)) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"drop": (4, 5)},
        {"overrides": {"FrameOfReferenceUID": None, "PatientName": "Größe^Jürgen"}},
        {"overrides": {"ImageOrientationPatient": None, "PixelSpacing": None, "StudyDate": None}},
    ],
)
def test_judges_find_no_fault_in_a_note_and_read_its_sentences(
    make_flair_series: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    study = read_study(make_flair_series(**changes).folder)
    (decision,) = choose(study, SelectionSettings()).decisions
    refusal = Refusal(decision.reason, decision.explanation)
    note = build_note(study.series[0], refusal, pack())
    path = tmp_path / "note.dcm"
    path.write_bytes(note.content)
    assert complaints(DCIODVFY, path) == []
    sources = [instance.path for instance in study.series[0].instances]
    assert complaints(DCENTVFY, path, *sources) == []
    printed = run(DSRDUMP, "+U8", "+Pl", path)
    assert "Basic Text SR Document" in printed
    assert f"Reason code: {decision.reason}." in printed
    assert "Not analysed: " in printed
    assert printed.count("<contains IMAGE:") == len(sources)
    # tid1500reader and segimage2itkimage have nothing to read here: no measurement, no mask.


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Größe^Jürgen"),
        ("ISO_IR 100", "Größe^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 126", "Διονυσιος"),
    ],
)
def test_judges_read_names_in_any_script(
    make_flair_series: Make, tmp_path: Path, character_set: str | list[str], name: str
) -> None:
    made = make_flair_series(overrides={"SpecificCharacterSet": character_set, "PatientName": name})
    paths = judge(made.series, three_lesions(), tmp_path)
    dumped = run("/usr/bin/dcmdump", "-Un", "+P", "0010,0010", paths["sr"])
    found = re.search(r"\[(.*?)\s*\]", dumped)
    assert found is not None
    assert found.group(1) == name


@pytest.mark.parametrize("told", [{}, {"LossyImageCompressionRatio": "8"}])
def test_judges_accept_results_of_images_that_were_compressed_with_loss(
    make_flair_series: Make, tmp_path: Path, told: dict[str, str]
) -> None:
    made = make_flair_series(overrides={"LossyImageCompression": "01", **told})
    judge(made.series, three_lesions(), tmp_path)


def as_made(series: Series) -> SimpleNamespace:
    """A series from elsewhere as `write_enhanced` takes one. Slope 1, intercept 0."""
    volume = read_volume(series)
    return SimpleNamespace(
        paths=[instance.path for instance in series.instances],
        sop_instance_uids=volume.sop_instance_uids,
        voxels=volume.voxels,
        series_instance_uid=series.series_instance_uid,
    )


@pytest.mark.timeout(180)  # dcentvfy reads 38 files; a minute on a machine that does much else
@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_judges_agree_on_a_real_study(shared_data: Path, tmp_path: Path, kind: str) -> None:
    """Real geometry and pixels; the bright blobs stand in for lesions and are none."""
    folder = shared_data / "dicom_wrapped_ms" / "patient01_study1"
    series = read_series(sorted(folder.glob("*.dcm")))
    voxels = read_volume(series).voxels
    if kind == "enhanced":
        series = write_enhanced(as_made(series), tmp_path / "e", order=range(len(voxels))[::-1])
    parts, _ = ndimage.label(voxels > np.percentile(voxels, 99.5), np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    largest = np.argsort(-sizes, kind="stable")[:12] + 1
    labels = np.zeros(parts.shape, np.int32)
    for number, part in enumerate(largest, start=1):
        labels[parts == part] = number
    judge(series, labels, tmp_path)
