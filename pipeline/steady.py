"""An ensemble that outlives trouble with its device, or says plainly that it cannot.

Out of memory: the same once more, one slice at a time. Still out of memory, or the device gone: on
the CPU if the site allows it, with the mirroring that the device would have had, so that the result
is the same one; else the case is held, since nothing is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

from pydantic import JsonValue

from config.settings import PipelineSettings
from dicom.errors import Outcome, StudyError
from pipeline.ensemble import (
    Array,
    DeviceError,
    Ensemble,
    Mirroring,
    Segmentation,
    give_memory_back,
    trouble_of_device,
)
from pipeline.model_pack import ModelPack

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

    def __init__(self, ensemble: Ensemble, on_cpu: Callable[[], Ensemble] | None) -> None:
        """Wrap an ensemble.

        Args:
            ensemble: On its device.
            on_cpu: Loads the same for the CPU; None where the site does not allow that.
        """
        self._ensemble = ensemble
        self._on_cpu = on_cpu
        self._substitute: Ensemble | None = None
        self.worn = False
        """The device failed: a new process should take the next case."""

    @classmethod
    def load(cls, pack: ModelPack, settings: PipelineSettings) -> Self:
        """The members of a pack on the configured device, or on the CPU if that is allowed.

        Raises:
            DeviceError: The device is not there, and the CPU is not allowed in its place.
            ModelPackError: The pack cannot be run.
        """
        try:
            ensemble = Ensemble.load(
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
            return cls(
                Ensemble.load(pack, device="cpu", mirroring=mirrored, threads=settings.threads),
                None,
            )

        def on_cpu() -> Ensemble:
            return Ensemble.load(
                pack,
                device="cpu",
                mirroring="on" if ensemble.mirroring_axes else "off",
                threads=settings.threads,
                precision=ensemble.precision,
            )

        return cls(ensemble, on_cpu if settings.allow_cpu_fallback else None)

    def settings(self) -> dict[str, JsonValue]:
        """What changes the result; the same on the device and in its place."""
        return self._ensemble.settings()

    def segment(self, images: Array) -> Segmentation:
        """As `Ensemble.segment`.

        Raises:
            DeviceUnavailableError: The device failed, and nothing may take its place.
        """
        if self._substitute is not None:
            return self._substitute.segment(images)
        trouble, found = _segment(self._ensemble, images)
        if trouble == "memory":
            give_memory_back()
            trouble, found = _segment(self._ensemble.slice_by_slice(), images)
        return self._without_device(trouble, images) if found is None else found

    def _without_device(self, trouble: str, images: Array) -> Segmentation:
        self.worn = True
        device = self._ensemble.device
        if self._on_cpu is None:
            raise DeviceUnavailableError(
                f"device {device} {_WHAT[trouble]}; pipeline.allow_cpu_fallback is off"
            )
        self._substitute = self._on_cpu()
        return self._substitute.segment(images)


def _segment(ensemble: Ensemble, images: Array) -> tuple[str, Segmentation | None]:
    """What it says, or the trouble with its device; the failed attempt's memory is free again."""
    try:
        return "", ensemble.segment(images)
    except RuntimeError as error:
        trouble = trouble_of_device(error)
        if not trouble:
            raise
        return trouble, None
