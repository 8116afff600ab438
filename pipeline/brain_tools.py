"""Skull strips of others: FSL BET, HD-BET and SynthStrip, where a site has them and says so.

None of them comes with flairnode, and none is ever used unless `pipeline.brain` names it; there is
no fallback from one to another. A tool runs as a process of its own: a list of arguments, no shell,
a time limit, a private folder that is removed, an environment without our secrets and with the
network pointed at nothing. What it writes is taken only if it is a 0/1 mask on the very grid of the
image.

Written from the tools' published command lines (FSL 6 `bet`, HD-BET 2 `hd-bet`, FreeSurfer 7
`mri_synthstrip`). THE TOOLS THEMSELVES WERE NOT RUN: none could be had here. The tests run small
executables that take the same command lines.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from config.settings import BrainToolSettings, PipelineSettings
from dicom.errors import Outcome, StudyError
from dicom.volume import Grid, Volume, read_nifti, write_nifti
from pipeline.brain import (
    SURFACE_REFINE_VERSION,
    BrainExtractionError,
    BrainMask,
    EmptyMaskError,
    Parameter,
    strip_skull,
)
from pipeline.morphology import Mask

SAME_AFFINE = 1e-3
"""Largest difference of any element of two affines that are one: NIfTI keeps them in float32."""
LONGEST_WORDS = 200
"""Of a tool's last words in an error."""
_FOLDER_PREFIX = "flairnode-brain-"

# An allow-list: settings can hold the password of a database, and proxies a way out.
_KEPT_VARIABLES = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH",
        "FSLDIR", "FREESURFER_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    }
)  # fmt: skip
_NOBODY = "http://127.0.0.1:9"  # the discard port: a tool that wants to download fails at once
_OFFLINE = {
    **dict.fromkeys(
        ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
        _NOBODY,
    ),
    "no_proxy": "",
    "NO_PROXY": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
}


class BrainToolError(BrainExtractionError):
    """The configured tool made no mask. The study is not at fault."""

    reason = "brain-tool-failed"
    outcome: ClassVar[Outcome] = Outcome.FAILED


class BrainToolMissingError(BrainToolError):
    """The configured tool, its weights or its version is not there."""

    reason = "brain-tool-missing"


class BrainToolTimeoutError(BrainToolError):
    """The tool took longer than `pipeline.brain_tool.timeout_s`, and was ended."""

    reason = "brain-tool-timeout"


class BrainToolGridError(BrainToolError):
    """The mask lies on another grid than the image."""

    reason = "brain-tool-wrong-grid"


class BrainToolMaskError(BrainToolError):
    """What was written is no mask of zeros and ones."""

    reason = "brain-tool-bad-mask"


class BrainToolEmptyMaskError(EmptyMaskError):
    """The tool looked, and found no brain."""

    reason = "brain-tool-empty-mask"


@dataclass(frozen=True, slots=True)
class Availability:
    """Can the extractor be used here?"""

    ok: bool
    text: str
    """What it is; or what is missing, and what to do."""
    version: str = ""


class BrainExtractor(Protocol):
    """A way to the brain of an image."""

    @property
    def name(self) -> str:
        """What `pipeline.brain` calls it, and results record."""

    def available(self) -> Availability:
        """Can it be used? Looks at files only: nothing is run, written or fetched."""

    def extract(self, volume: Volume) -> BrainMask:
        """The brain on the grid of the image."""


@dataclass(frozen=True, slots=True)
class SurfaceRefine:
    """The default: no weights, nothing to install."""

    name: str = "surface-refine"

    def available(self) -> Availability:
        """Always."""
        text = f"{self.name} {SURFACE_REFINE_VERSION}, part of flairnode"
        return Availability(ok=True, text=text, version=SURFACE_REFINE_VERSION)

    def extract(self, volume: Volume) -> BrainMask:
        """As `pipeline.brain.strip_skull`."""
        return strip_skull(volume)


@dataclass(frozen=True, slots=True)
class BrainTool(ABC):
    """A program of others that reads a NIfTI image and writes a mask."""

    settings: BrainToolSettings
    threads: int = 0

    name: ClassVar[str]
    commands: ClassVar[tuple[str, ...]]
    """Names it is looked for under, on PATH."""
    note: ClassVar[str]
    """Where it comes from, and its licence."""

    @abstractmethod
    def version(self, executable: Path) -> str:
        """As the installed tool states it; "" if it does not."""

    @abstractmethod
    def call(self, executable: Path, image: Path, folder: Path) -> tuple[list[str], Path]:
        """The command line, and the mask it will write."""

    @abstractmethod
    def parameters(self) -> dict[str, Parameter]:
        """What changes its mask, weights included."""

    def missing_weights(self) -> str:
        """What to do about weights that are not there; "" if none are missing."""
        return ""

    def variables(self) -> dict[str, str]:
        """More of the environment."""
        return {}

    def executable(self) -> Path | None:
        """The configured program, or the one on PATH."""
        if self.settings.command is not None:
            path = self.settings.command
            return path if path.is_file() and os.access(path, os.X_OK) else None
        found = next((one for name in self.commands if (one := shutil.which(name))), None)
        return None if found is None else Path(found)

    def available(self) -> Availability:
        """Program, version and weights, from files alone."""
        executable = self.executable()
        if executable is None:
            where = self.settings.command or f"{' or '.join(self.commands)} on PATH"
            return Availability(
                ok=False,
                text=f"{self.name}: no program at {where}; install it, or set"
                f" pipeline.brain_tool.command. {self.note}",
            )
        version = self.version(executable)
        if not version:
            return Availability(
                ok=False,
                text=f"{self.name}: {executable} does not state its version, which results must"
                f" record. {self.note}",
            )
        if missing := self.missing_weights():
            return Availability(ok=False, text=f"{self.name}: {missing} {self.note}")
        text = f"{self.name} {version} at {executable}. {self.note}"
        return Availability(ok=True, text=text, version=version)

    def extract(self, volume: Volume) -> BrainMask:
        """Run the tool on an image.

        Raises:
            BrainToolMissingError: It is not there, or not any more.
            BrainToolTimeoutError: It took too long.
            BrainToolGridError, BrainToolMaskError: What it wrote is no mask of this image.
            BrainToolEmptyMaskError: It found no brain.
            BrainToolError: It failed, or wrote nothing.
        """
        executable, status = self.executable(), self.available()
        if executable is None or not status.ok:
            raise BrainToolMissingError(status.text)
        _remove_what_the_dead_left()
        with tempfile.TemporaryDirectory(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-") as name:
            folder = Path(name)  # 0700, as `mkdtemp` makes them
            image = folder / "image.nii.gz"
            write_nifti(image, volume.voxels.astype(np.float32, copy=False), volume.grid)
            arguments, written = self.call(executable, image, folder)
            _run(self.name, arguments, folder, self.settings.timeout_s, self.variables())
            mask = _mask_of(self.name, written, volume.grid)
        return BrainMask(mask, volume.grid, self.name, status.version, self.parameters())


@dataclass(frozen=True, slots=True)
class FslBet(BrainTool):
    """FSL's `bet`, the skull strip the paper names."""

    name: ClassVar[str] = "fsl-bet"
    commands: ClassVar[tuple[str, ...]] = ("bet",)
    note: ClassVar[str] = "FSL is licensed for non-commercial use only."

    def version(self, executable: Path) -> str:
        """`etc/fslversion` of the installation."""
        roots = [executable.resolve().parents[level] for level in (1, 2)]
        if given := os.environ.get("FSLDIR"):
            roots.insert(0, Path(given))
        return _first_line(root / "etc" / "fslversion" for root in roots).split(":")[0]

    def call(self, executable: Path, image: Path, folder: Path) -> tuple[list[str], Path]:
        """`bet image brain -m -n -f FRACTION`: the mask alone."""
        fraction = f"{self.settings.fraction:g}"
        arguments = [str(executable), str(image), str(folder / "brain"), "-m", "-n", "-f", fraction]
        return arguments, folder / "brain_mask.nii.gz"

    def parameters(self) -> dict[str, Parameter]:
        """The fractional intensity threshold."""
        return {"fraction": self.settings.fraction}

    def variables(self) -> dict[str, str]:
        """The kind of file it writes."""
        return {"FSLOUTPUTTYPE": "NIFTI_GZ"}


@dataclass(frozen=True, slots=True)
class HdBet(BrainTool):
    """HD-BET, release 2. It would fetch its weights on first use: they must lie there before."""

    name: ClassVar[str] = "hd-bet"
    commands: ClassVar[tuple[str, ...]] = ("hd-bet",)
    note: ClassVar[str] = "HD-BET: read its licence and that of its weights before clinical use."

    _FOLDER: ClassVar[tuple[str, ...]] = ("hd-bet_params", "release_2.0.0")

    def version(self, executable: Path) -> str:
        """Of the installed distribution, beside whose scripts the program lies."""
        version = _distribution_version(executable, "hd[-_]bet")
        return version if version.startswith("2.") else ""  # 1.x takes other arguments

    def weights(self) -> Path:
        """The folder it reads; below its home, whatever else is asked of it."""
        return self.settings.weights or Path.home().joinpath(*self._FOLDER)

    def missing_weights(self) -> str:
        """The checkpoint, in the folder that the program itself looks in."""
        folder, checkpoint = self.weights(), self._checkpoint()
        if folder.parts[-2:] != self._FOLDER:
            return (
                f"pipeline.brain_tool.weights must end in {'/'.join(self._FOLDER)}, the folder"
                " that HD-BET reads below its home."
            )
        if not checkpoint.is_file():
            return (
                f"no weights at {checkpoint}: put the released checkpoint there by hand; this node"
                " lets no tool fetch anything."
            )
        return ""

    def call(self, executable: Path, image: Path, folder: Path) -> tuple[list[str], Path]:
        """One image, the mask alone; without mirroring on a CPU, as its authors advise."""
        output = folder / "brain.nii.gz"
        arguments = [str(executable), "-i", str(image), "-o", str(output)]
        arguments += ["-device", self.settings.device, "--save_bet_mask", "--no_bet_image"]
        if self.settings.device == "cpu":
            arguments.append("--disable_tta")
        return arguments, folder / "brain_bet.nii.gz"

    def parameters(self) -> dict[str, Parameter]:
        """Device, mirroring and the digest of the weights."""
        return {
            "device": self.settings.device,
            "mirroring": float(self.settings.device != "cpu"),
            "weights_sha256": _file_digest(self._checkpoint()),
        }

    def variables(self) -> dict[str, str]:
        """The home whose weights were looked at: no others can be read."""
        return {"HOME": str(self.weights().parents[1])}

    def _checkpoint(self) -> Path:
        return self.weights() / "fold_all" / "checkpoint_final.pth"


@dataclass(frozen=True, slots=True)
class SynthStrip(BrainTool):
    """FreeSurfer's `mri_synthstrip`, or the same program of nipreps."""

    name: ClassVar[str] = "synthstrip"
    commands: ClassVar[tuple[str, ...]] = ("mri_synthstrip", "nipreps-synthstrip")
    note: ClassVar[str] = (
        "SynthStrip's model file comes from FreeSurfer, under FreeSurfer's licence."
    )

    def version(self, executable: Path) -> str:
        """Of the FreeSurfer it belongs to, else of the distribution of nipreps."""
        roots = [executable.resolve().parents[1]]
        if given := os.environ.get("FREESURFER_HOME"):
            roots.insert(0, Path(given))
        stamp = _first_line(root / "build-stamp.txt" for root in roots)
        numbered = re.search(r"(?:^|[-_v])(\d+\.\d+\.\d+[\w.]*)", stamp)
        if numbered is not None:
            return numbered.group(1)
        return stamp or _distribution_version(executable, "nipreps[-_]synthstrip")

    def model(self) -> Path | None:
        """The configured model, or the one of FreeSurfer."""
        if self.settings.weights is not None:
            return self.settings.weights
        home = os.environ.get("FREESURFER_HOME")
        return None if home is None else Path(home) / "models" / "synthstrip.1.pt"

    def missing_weights(self) -> str:
        """The model file."""
        model = self.model()
        if model is not None and model.is_file():
            return ""
        where = model or "FREESURFER_HOME/models/synthstrip.1.pt"
        return f"no model at {where}: set pipeline.brain_tool.weights to the file of FreeSurfer."

    def call(self, executable: Path, image: Path, folder: Path) -> tuple[list[str], Path]:
        """One image, the mask alone, with the model that was looked at."""
        mask = folder / "mask.nii.gz"
        arguments = [str(executable), "-i", str(image), "-m", str(mask)]
        arguments += ["--model", str(self.model())]
        if self.settings.device == "cuda":
            arguments.append("-g")
        return arguments, mask

    def parameters(self) -> dict[str, Parameter]:
        """Device and the digest of the model; the border is the tool's own, 1 mm."""
        model = self.model()
        return {
            "device": self.settings.device,
            "weights_sha256": "" if model is None else _file_digest(model),
        }


_TOOLS: Mapping[str, type[BrainTool]] = {tool.name: tool for tool in (FslBet, HdBet, SynthStrip)}


def extractor_of(settings: PipelineSettings) -> BrainExtractor:
    """The extractor that `pipeline.brain` names."""
    if settings.brain == "surface-refine":
        return SurfaceRefine()
    return _TOOLS[settings.brain](settings.brain_tool, settings.threads)


def require_extractor(settings: PipelineSettings) -> BrainExtractor:
    """The extractor that `pipeline.brain` names, and which can be used here.

    Raises:
        BrainToolMissingError: It cannot; the message says what is missing and what to do.
    """
    extractor = extractor_of(settings)
    status = extractor.available()
    if not status.ok:
        raise BrainToolMissingError(status.text)
    return extractor


Extract = Callable[[Volume], BrainMask]


# --- running a program of others ---------------------------------------------------------------


def _run(
    name: str,
    arguments: list[str],
    folder: Path,
    timeout_s: float,
    variables: Mapping[str, str],
) -> None:
    told = folder / "told.txt"
    with told.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: S603  # a configured program, no shell
                [*_guard(), *arguments],
                cwd=folder,
                env=_environment(folder, variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BrainToolMissingError(f"{name} cannot be started: {error.strerror}") from error
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise BrainToolTimeoutError(
                f"{name} was ended after {timeout_s:g} s (pipeline.brain_tool.timeout_s)"
            ) from error
        except BaseException:
            _end(process)
            raise
    if status != 0:
        how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
        raise BrainToolError(f"{name}: {how}. {_last_words(told, folder)}".rstrip())


def _guard() -> list[str]:
    """The tool dies with the worker, which may be killed at any moment (util-linux)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv is not None else []


def _end(process: subprocess.Popen[bytes]) -> None:
    # The whole group: `bet` is a script that starts others. It is not reaped yet, so that its
    # number cannot be that of a stranger.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES}
    return {**kept, **_OFFLINE, "TMPDIR": str(folder), **variables}


def _last_words(told: Path, folder: Path) -> str:
    """The last line a tool wrote: printable, short, without the name of the private folder."""
    with told.open("rb") as file:
        file.seek(max(0, told.stat().st_size - 4096))
        text = file.read().decode("ascii", errors="replace").replace(str(folder), "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = "".join(one if one.isprintable() else "?" for one in (lines or [""])[-1])
    return f"It said: {shown[:LONGEST_WORDS]}" if shown else ""


def _mask_of(name: str, path: Path, grid: Grid) -> Mask:
    if not path.is_file():
        raise BrainToolError(f"{name} ended well and wrote no mask")
    try:
        mask = read_nifti(path)
    except StudyError as error:
        raise BrainToolMaskError(f"{name} wrote no readable mask: {error}") from error
    if mask.grid.shape != grid.shape:
        raise BrainToolGridError(
            f"{name} wrote a mask of {mask.grid.shape} voxels (slices, rows, columns),"
            f" the image has {grid.shape}"
        )
    apart = float(np.abs(mask.grid.affine - grid.affine).max())
    if apart > SAME_AFFINE:
        raise BrainToolGridError(
            f"{name} wrote a mask that lies elsewhere: its affine differs by up to {apart:.4g}"
        )
    inside: Mask = mask.voxels == 1
    if not (inside | (mask.voxels == 0)).all():
        raise BrainToolMaskError(f"{name} wrote a mask of other values than 0 and 1")
    if not inside.any():
        raise BrainToolEmptyMaskError(f"{name} found no brain")
    return inside


def _remove_what_the_dead_left() -> None:
    """A worker that was killed could not remove its folder: it holds a head."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        mine = folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()
        if mine and owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


# --- what is installed --------------------------------------------------------------------------


def _first_line(paths: Iterator[Path]) -> str:
    for path in paths:
        with suppress(OSError, UnicodeDecodeError):
            lines = path.read_text(encoding="ascii").strip().splitlines()
            if lines:
                return lines[0].strip()[:64]
    return ""


def _distribution_version(executable: Path, name: str) -> str:
    """Version of a Python distribution, read from its metadata beside the scripts folder."""
    root = executable.resolve().parents[1]
    pattern = re.compile(rf"{name}-(.+)\.dist-info", re.IGNORECASE)
    for folder in sorted(root.glob("lib*/python3*/site-packages/*.dist-info")):
        if pattern.fullmatch(folder.name):
            with suppress(OSError, UnicodeDecodeError):
                told = (folder / "METADATA").read_text(encoding="utf-8")
                stated = re.search(r"^Version: *(\S+)$", told, re.MULTILINE)
                if stated is not None:
                    return stated.group(1)[:64]
    return ""


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _digest_of(path, status.st_mtime_ns, status.st_size)


@cache
def _digest_of(path: Path, _mtime_ns: int, _size: int) -> str:
    """SHA-256 of a file, computed once while it stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
