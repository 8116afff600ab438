"""Checkpoints in nnU-Net's form, that are whole or not there, and are never unpickled on trust.

nnU-Net writes numpy scalars and a `torch.device` into its checkpoints and reads them with
`weights_only=False`, which runs whatever code the file holds. Ours hold tensors and plain values
alone, so that `weights_only=True` reads them without any exception, and `nnUNetPredictor` as well.
"""

from __future__ import annotations

import hashlib
import pickle  # noqa: TID251  # the name of its error; nothing is unpickled
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from dicom.errors import Outcome, StudyError
from training.whole_files import write_whole

LATEST, BEST, FINAL = (f"checkpoint_{name}.pth" for name in ("latest", "best", "final"))
FORMAT = 1


class CheckpointDamagedError(StudyError):
    """A checkpoint cannot be read. It was written whole: the disk, or somebody, changed it."""

    reason: ClassVar[str] = "checkpoint-damaged"
    outcome: ClassVar[Outcome] = Outcome.FAILED


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write it so that a stop at any moment leaves the old one or the whole new one.

    Raises:
        DiskFullError: No space; the old one is still there.
    """
    write_whole(path, lambda part: _save(part, content))


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Tensors and plain values; anything else in the file is refused.

    Raises:
        CheckpointDamagedError: It is no checkpoint of ours.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        known = content["flairnode"]["format"]
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointDamagedError(
            f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__}). Restore it "
            "from a copy; or remove it, and the fold begins anew"
        ) from error
    if known != FORMAT:
        raise CheckpointDamagedError(f"{path.name} is of format {known}, expected {FORMAT}")
    return content


def weights_digest(parameters: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, shapes and bytes of all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(parameters):
        values = parameters[name].detach().cpu().float().contiguous()
        digest.update(f"{name}\0{tuple(values.shape)}\0".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _save(part: Path, content: Mapping[str, Any]) -> None:
    try:
        with part.open("wb") as file:
            torch.save(dict(content), file)
    except RuntimeError as error:
        # torch's writer says in words of its own what the file told it: a full disk, mostly.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
