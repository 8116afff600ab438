"""An ensemble that outlives trouble with its device, or says plainly that it cannot.

Out of memory: the same once more, one slice at a time. Still out of memory, or the device gone: on
the CPU if the site allows it, with the mirroring that the device would have had, so that the result
is the same one; else the case is held, since nothing is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar, cast

from pydantic import JsonValue

from config.settings import PipelineSettings
from dicom.errors import Outcome, StudyError
from dicom.volume import Volume
from pipeline.brain import BrainMask
from pipeline.ensemble import (
    AnyEnsemble,
    Array,
    DeviceError,
    Ensemble,
    Mirroring,
    Segmentation,
    give_memory_back,
    load_ensemble,
    trouble_of_device,
)
from pipeline.flow import Timed
from pipeline.model_pack import ModelPack

if TYPE_CHECKING:
    from pipeline.nnunet_volume import VolumeEnsemble

Answer = TypeVar("Answer")
AnySteadyEnsemble: TypeAlias = "SteadyCanvasEnsemble | SteadyVolumeEnsemble"

_WHAT = {
    "memory": "ran out of memory, with one slice at a time as well",
    "gone": "does not work any more",
}


class DeviceUnavailableError(StudyError):
    """The device failed, and the site does not allow the CPU in its place."""

    reason: ClassVar[str] = DeviceError.reason
    outcome: ClassVar[Outcome] = Outcome.HELD
    retry: ClassVar[bool] = True


class SteadyEnsemble:
    """What `pipeline.flow` takes for an ensemble, around a real one."""

    def __init__(self, ensemble: AnyEnsemble, on_cpu: Callable[[], AnyEnsemble] | None) -> None:
        """Wrap an ensemble.

        Args:
            ensemble: On its device.
            on_cpu: Loads the same for the CPU; None where the site does not allow that.
        """
        self._ensemble = ensemble
        self._on_cpu = on_cpu
        self._substitute: AnyEnsemble | None = None
        self.worn = False
        """The device failed: a new process should take the next case."""

    @staticmethod
    def load(pack: ModelPack, settings: PipelineSettings) -> AnySteadyEnsemble:
        """The members of a pack on the configured device, or on the CPU if that is allowed.

        Raises:
            DeviceError: The device is not there, and the CPU is not allowed in its place.
            ModelPackError: The pack cannot be run.
        """
        kind = SteadyVolumeEnsemble if pack.manifest.canvas is None else SteadyCanvasEnsemble
        try:
            ensemble = load_ensemble(
                pack,
                device=settings.device,
                mirroring=settings.mirroring,
                threads=settings.threads,
            )
        except DeviceError:
            if not settings.allow_cpu_fallback:
                raise
            # `auto` is what the missing GPU would have done.
            mirrored: Mirroring = "off" if settings.mirroring == "off" else "on"
            threads = settings.threads
            return kind(
                load_ensemble(pack, device="cpu", mirroring=mirrored, threads=threads), None
            )

        def on_cpu() -> AnyEnsemble:
            return load_ensemble(
                pack,
                device="cpu",
                mirroring="on" if ensemble.mirroring_axes else "off",
                threads=settings.threads,
                precision=ensemble.precision,
            )

        return kind(ensemble, on_cpu if settings.allow_cpu_fallback else None)

    def settings(self) -> dict[str, JsonValue]:
        """What changes the result; the same on the device and in its place."""
        return self._ensemble.settings()

    def _asked(self, ask: Callable[[AnyEnsemble], Answer]) -> Answer:
        """What the ensemble says, or the one in its place.

        Raises:
            DeviceUnavailableError: The device failed, and nothing may take its place.
        """
        if self._substitute is not None:
            return ask(self._substitute)
        trouble, found = _ask(ask, self._ensemble)
        if trouble == "memory":
            give_memory_back()
            trouble, found = _ask(ask, self._ensemble.slice_by_slice())
        return ask(self._without_device(trouble)) if found is None else found

    def _without_device(self, trouble: str) -> AnyEnsemble:
        self.worn = True
        device = self._ensemble.device
        if self._on_cpu is None:
            raise DeviceUnavailableError(
                f"device {device} {_WHAT[trouble]}; pipeline.allow_cpu_fallback is off"
            )
        self._substitute = self._on_cpu()
        return self._substitute


class SteadyCanvasEnsemble(SteadyEnsemble):
    """Of a canvas pack."""

    def segment(self, images: Array) -> Segmentation:
        """As `Ensemble.segment`.

        Raises:
            DeviceUnavailableError: The device failed, and nothing may take its place.
        """
        return self._asked(lambda one: cast("Ensemble", one).segment(images))


class SteadyVolumeEnsemble(SteadyEnsemble):
    """Of a pack that brings nnU-Net's own preprocessing."""

    def segment_volume(self, volume: Volume, brain: BrainMask, stage: Timed) -> tuple[Array, Array]:
        """As `VolumeEnsemble.segment_volume`.

        Raises:
            DeviceUnavailableError: The device failed, and nothing may take its place.
        """
        return self._asked(
            lambda one: cast("VolumeEnsemble", one).segment_volume(volume, brain, stage)
        )


def _ask(ask: Callable[[AnyEnsemble], Answer], ensemble: AnyEnsemble) -> tuple[str, Answer | None]:
    """What it says, or the trouble with its device; the failed attempt's memory is free again."""
    try:
        return "", ask(ensemble)
    except RuntimeError as error:
        trouble = trouble_of_device(error)
        if not trouble:
            raise
        return trouble, None
