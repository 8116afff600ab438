"""A pack is used only if every byte of it is what its manifest says."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from dicom.errors import Outcome
from pipeline.model_pack import (
    Canvas,
    Description,
    LeakRule,
    Manifest,
    ModelPackError,
    ModelPackNotFoundError,
    Summary,
    canonical_json,
    find_pack,
    install_pack,
    list_packs,
    load_pack,
    write_pack,
)


def describe(**changes: object) -> Description:
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": "1.0",
        "status": "research",
        "canvas": Canvas(rows=224, columns=192, pixel_mm=1, normalisation="starter", dilation_mm=2),
        "minimum_lesion_mm3": 5,
        "leak_rule": LeakRule(),
        "folds": (0, 1),
        "patient_folds": False,
        "training_data": Summary(text="Nothing: random numbers.", figures={"patients": 0}),
        "validation": Summary(text="None."),
        "intended_use": "Tests.",
        "limits": ("Useless.",),
        "licence": "Apache-2.0",
    }
    return Description.model_validate(fields | changes)


def member(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "a.weight": random.normal(size=(3, 2)).astype(np.float32),
        "a.bias": np.array([0.1, -2.0, 1024.0], np.float32),
    }


@pytest.fixture
def pack_path(tmp_path: Path) -> Path:
    path = tmp_path / "packs" / "tiny"
    write_pack(
        path,
        describe(),
        plans={"configurations": {}},
        dataset_json={"labels": {"background": 0, "lesion": 1}},
        weights={0: member(0), 1: member(1)},
        card="# Tiny\n",
    )
    return path


def rewrite(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_written_pack_is_read_back_as_described(pack_path: Path) -> None:
    pack = load_pack(pack_path)
    assert dict(pack.manifest) == dict(describe()) | {"files": pack.manifest.files}
    assert set(pack.manifest.files) == {
        "plans.json",
        "dataset.json",
        "card.md",
        "fold_0/weights.safetensors",
        "fold_1/weights.safetensors",
    }
    assert pack.read_json("dataset.json") == {"labels": {"background": 0, "lesion": 1}}


def test_weights_are_stored_in_half_precision(pack_path: Path) -> None:
    tensors = load(load_pack(pack_path).read("fold_0/weights.safetensors"))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "a.weight": np.float16,
        "a.bias": np.float16,
    }
    # 0.1 in half precision is 1638 / 2^14.
    assert tensors["a.bias"].tolist() == [1638 / 2**14, -2.0, 1024.0]


def test_the_same_weights_give_the_same_digest(tmp_path: Path) -> None:
    digests = [
        write_pack(
            tmp_path / str(copy),
            describe(),
            plans={},
            dataset_json={},
            weights={0: member(0), 1: dict(reversed(member(1).items()))},
            card="",
        ).digest
        for copy in (1, 2)
    ]
    assert digests[0] == digests[1]


def test_the_digest_is_over_what_the_manifest_says_not_over_its_layout(pack_path: Path) -> None:
    before = load_pack(pack_path).digest
    stored = json.loads((pack_path / "manifest.json").read_text())
    (pack_path / "manifest.json").write_text(json.dumps(dict(reversed(stored.items()))))
    after = load_pack(pack_path).digest
    assert before == after == hashlib.sha256(canonical_json(stored)).hexdigest()


def test_the_digest_changes_with_any_weight(pack_path: Path, tmp_path: Path) -> None:
    other = member(1)
    other["a.weight"][2, 1] += 1
    changed = write_pack(
        tmp_path / "other",
        describe(),
        plans={"configurations": {}},
        dataset_json={"labels": {"background": 0, "lesion": 1}},
        weights={0: member(0), 1: other},
        card="# Tiny\n",
    )
    assert changed.digest != load_pack(pack_path).digest


def test_one_changed_byte_is_refused(pack_path: Path) -> None:
    weights = pack_path / "fold_1" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelPackError, match=r"fold_1/weights\.safetensors") as error:
        load_pack(pack_path)
    assert error.value.reason == "model-pack-invalid"
    assert error.value.outcome is Outcome.FAILED


def test_a_file_that_changes_after_loading_is_refused_when_it_is_read(pack_path: Path) -> None:
    pack = load_pack(pack_path)
    (pack_path / "plans.json").write_text("{}")
    with pytest.raises(ModelPackError, match="another SHA-256"):
        pack.read("plans.json")


@pytest.mark.parametrize("stray", ["extra.pth", "fold_0/notes.txt", ".hidden"])
def test_a_file_the_manifest_does_not_name_is_refused(pack_path: Path, stray: str) -> None:
    (pack_path / stray).write_text("")
    with pytest.raises(ModelPackError, match=re.escape(stray)):
        load_pack(pack_path)


def test_a_missing_file_is_refused(pack_path: Path) -> None:
    (pack_path / "card.md").unlink()
    with pytest.raises(ModelPackError, match=r"lacks.*card\.md"):
        load_pack(pack_path)


def test_a_link_is_refused_even_to_the_right_content(pack_path: Path, tmp_path: Path) -> None:
    (pack_path / "card.md").rename(tmp_path / "card.md")
    (pack_path / "card.md").symlink_to(tmp_path / "card.md")
    with pytest.raises(ModelPackError, match=r"card\.md.*link"):
        load_pack(pack_path)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd.txt", "a//b.json", "./b.json", "a\\b.json", "c:b.json"]
)
def test_a_path_that_leaves_the_pack_is_refused(pack_path: Path, name: str) -> None:
    files = dict(load_pack(pack_path).manifest.files)
    rewrite(pack_path, files=files | {name: "0" * 64})
    with pytest.raises(ModelPackError, match="not a plain path"):
        load_pack(pack_path)


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "weights.pkl", "weights.npy", "hook.py"])
def test_a_file_that_could_hold_code_has_no_place(pack_path: Path, name: str) -> None:
    (pack_path / name).write_bytes(b"")
    files = dict(load_pack_files(pack_path)) | {name: hashlib.sha256(b"").hexdigest()}
    rewrite(pack_path, files=files)
    with pytest.raises(ModelPackError, match="no place in a pack"):
        load_pack(pack_path)


def load_pack_files(path: Path) -> dict[str, str]:
    files: dict[str, str] = json.loads((path / "manifest.json").read_text())["files"]
    return files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "colour"),
        ({"status": "approved"}, "status"),
        ({"preprocessing": "nnunet"}, "canvas"),
        ({"folds": [0, 0]}, "twice"),
        ({"folds": [0, 1, 2]}, "fold_2"),
        ({"folds": []}, "folds"),
        ({"threshold": 1.0}, "threshold"),
        ({"minimum_lesion_mm3": -1}, "minimum_lesion_mm3"),
        ({"mirroring_axes": [2]}, "mirroring_axes"),
        ({"format": 2}, "format"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(
    pack_path: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(pack_path, **changes)
    with pytest.raises(ModelPackError, match=message):
        load_pack(pack_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100000])
def test_a_manifest_that_is_no_json_object_is_refused(pack_path: Path, content: str) -> None:
    (pack_path / "manifest.json").write_text(content)
    with pytest.raises(ModelPackError, match=r"manifest\.json"):
        load_pack(pack_path)


def test_a_weight_too_large_for_half_precision_is_refused(tmp_path: Path) -> None:
    weights = member(0)
    weights["a.bias"][0] = 70_000  # the largest half is 65,504
    with pytest.raises(ModelPackError, match=r"a\.bias"):
        write_pack(
            tmp_path / "p",
            describe(folds=(0,)),
            plans={},
            dataset_json={},
            weights={0: weights},
            card="",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_pack_is_never_overwritten(pack_path: Path) -> None:
    with pytest.raises(ModelPackError, match="exists"):
        write_pack(pack_path, describe(), plans={}, dataset_json={}, weights={}, card="")


def test_weights_must_be_those_of_the_folds(tmp_path: Path) -> None:
    with pytest.raises(ModelPackError, match="folds"):
        write_pack(
            tmp_path / "p", describe(), plans={}, dataset_json={}, weights={0: member(0)}, card=""
        )


def test_a_pack_is_found_by_name_by_version_and_by_path(pack_path: Path) -> None:
    folders = [pack_path.parent]
    assert find_pack("tiny", folders=folders) == pack_path
    assert find_pack("tiny-1.0", folders=folders) == pack_path
    assert find_pack(pack_path) == pack_path


def test_a_name_nobody_has_is_a_coded_error(tmp_path: Path) -> None:
    with pytest.raises(ModelPackNotFoundError, match="model list") as error:
        find_pack("no-such-pack", folders=[tmp_path])
    assert error.value.reason == "model-pack-not-found"


def test_a_name_of_two_versions_must_be_spelled_out(pack_path: Path, tmp_path: Path) -> None:
    write_pack(
        pack_path.parent / "newer",
        describe(version="1.1"),
        plans={},
        dataset_json={},
        weights={0: member(0), 1: member(1)},
        card="",
    )
    with pytest.raises(ModelPackNotFoundError, match=r"tiny-1\.1.*tiny-1\.0"):
        find_pack("tiny", folders=[pack_path.parent])
    assert find_pack("tiny-1.1", folders=[pack_path.parent]).name == "newer"


def test_a_pack_is_installed_once_under_name_and_version(pack_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "packs"
    first = install_pack(pack_path, folder)
    again = install_pack(pack_path, folder)
    assert first.digest == again.digest == load_pack(pack_path).digest
    assert [path.name for path in folder.iterdir()] == ["tiny-1.0"]
    assert [manifest.name for _, manifest in list_packs(folder)] == ["tiny"]


def test_another_pack_of_the_same_version_is_not_installed(pack_path: Path, tmp_path: Path) -> None:
    install_pack(pack_path, tmp_path / "data")
    rewrite(pack_path, intended_use="Something else.")
    with pytest.raises(ModelPackError, match="new version"):
        install_pack(pack_path, tmp_path / "data")


def test_a_broken_pack_is_not_installed(pack_path: Path, tmp_path: Path) -> None:
    (pack_path / "card.md").write_text("changed")
    with pytest.raises(ModelPackError, match=r"card\.md"):
        install_pack(pack_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_manifest_cannot_be_changed_once_read(pack_path: Path) -> None:
    manifest: Manifest = load_pack(pack_path).manifest
    with pytest.raises(ValueError, match="frozen"):
        manifest.threshold = 0.1  # type: ignore[misc]
