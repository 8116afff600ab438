"""What can be measured of the starter models with the project's data. It is no validation.

A model on the labelled patient it never saw, beside the best plain threshold; and the volume that
the whole pack marks in two heads without known lesions that it never saw. The figures go on the
card of the pack, bad as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from dicom.series import read_series
from dicom.volume import Grid, Volume, read_nifti, read_volume
from pipeline.brain import BrainMask, strip_skull, supplied_mask
from pipeline.ensemble import Ensemble, Mirroring
from pipeline.lesions import LesionMap, find_lesions
from pipeline.model_pack import ModelPack, Summary
from pipeline.morphology import Mask
from pipeline.preprocess import Array, prepare, restore
from training.metrics import compare
from training.pack import starter_pack
from training.starter import Recipe

SLABS_MM = (1, 5)
GUARD_LIMITS_ML = {"aera": 3.5, "rorden": 1.5}
"""Set before training (starter_model.md): more is a fault of the weights or of the pipeline."""


def measure_left_out(member: Path, patient: str, data: Path, recipe: Recipe) -> JsonValue:
    """Dice and company of one model on its left-out patient, at 1 mm and averaged to 5 mm."""
    volume, brain, lesion = read_labelled(data, patient)
    with _packed({0: member}, recipe) as pack:
        ensemble = Ensemble.load(pack, device="cpu", mirroring="on", threads=1)
        return {
            f"{thickness}_mm": _agreement(
                pack, ensemble, *averaged(volume, brain, lesion, thickness)
            )
            for thickness in SLABS_MM
        }


def measure_guards(members: Mapping[int, Path], data: Path, recipe: Recipe) -> JsonValue:
    """Millilitres that the pack marks in heads without known lesions, never trained on."""
    with _packed(members, recipe) as pack:
        return {
            name: {
                f"ml_mirroring_{mirroring}": round(marked_ml(pack, volume, mirroring=mirroring), 2)
                for mirroring in ("on", "off")
            }
            for name, volume in guard_volumes(data).items()
        }


def guard_volumes(data: Path) -> dict[str, Volume]:
    """Clinical 5 mm FLAIR of the Aera study, and a 1 mm FLAIR: nobody knows a lesion in them."""
    aera = data / "dicom_samples" / "siemens_aera_study" / "FLAIR_t2_flair_tra"
    return {
        "aera": read_volume(read_series(sorted(aera.glob("*.dcm")))),
        "rorden": read_nifti(data / "flair_other" / "rorden_healthy" / "flair.nii.gz"),
    }


def marked_ml(pack: ModelPack, volume: Volume, *, mirroring: Mirroring) -> float:
    """Volume of all lesions that the pack finds in a head with its skull."""
    ensemble = Ensemble.load(pack, device="cpu", mirroring=mirroring, threads=1)
    lesions, _ = segment(pack, ensemble, volume, strip_skull(volume))
    return float(np.count_nonzero(lesions.labels) * volume.grid.voxel_volume_ml)


@contextmanager
def _packed(members: Mapping[int, Path], recipe: Recipe) -> Iterator[ModelPack]:
    """Members as they would ship (half precision, every rule), for as long as they are measured."""
    with tempfile.TemporaryDirectory() as scratch:
        yield starter_pack(
            Path(scratch) / "pack",
            members,
            validation=Summary(text="None."),
            card="",
            recipe=recipe,
        )


def segment(
    pack: ModelPack, ensemble: Ensemble, volume: Volume, brain: BrainMask
) -> tuple[LesionMap, float]:
    """Lesions as the node finds them, and the core median."""
    prepared = prepare(volume, brain, pack.manifest.canvas_spec())
    segmentation = ensemble.segment(prepared.images)
    probability, disagreement = restore(
        np.stack([segmentation.probability, segmentation.disagreement]), prepared.placement
    )
    lesions = find_lesions(
        probability, disagreement, volume, brain, pack.manifest, prepared.core_median
    )
    return lesions, prepared.core_median


def read_labelled(data: Path, patient: str) -> tuple[Volume, BrainMask, Mask]:
    """A labelled patient: stripped FLAIR, its mask, lesions."""
    folder = data / "ms_mni" / patient
    volume = read_nifti(folder / "flair.nii.gz")
    brain = supplied_mask(read_nifti(folder / "brain.nii.gz"), volume.grid)
    return volume, brain, read_nifti(folder / "lesion.nii.gz").voxels > 0.5


def averaged(
    volume: Volume, brain: BrainMask, lesion: Mask, thickness: int
) -> tuple[Volume, BrainMask, Mask]:
    """1 mm slices averaged to thick ones; a voxel is lesion where more than half of it is."""
    if thickness == 1:
        return volume, brain, lesion
    slices = len(lesion) // thickness

    def mean(values: Array | Mask) -> Array:
        whole = values[: slices * thickness].astype(np.float32)
        out: Array = whole.reshape(slices, thickness, *values.shape[1:]).mean(axis=1)
        return out

    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (thickness - 1) / 2
    affine[:3, 0] *= thickness
    grid = Grid(affine, (slices, *volume.grid.shape[1:]))
    thick_brain = BrainMask(mean(brain.mask) > 0.5, grid, brain.method, brain.version)
    return Volume(mean(volume.voxels), grid), thick_brain, mean(lesion) > 0.5


def best_threshold_dice(
    volume: Volume, brain: BrainMask, lesion: Mask, core_median: float
) -> float:
    """Dice of the best single intensity threshold in the brain: what any model should beat."""
    intensity = volume.voxels[brain.mask] / core_median
    truth = lesion[brain.mask]
    lesions = np.count_nonzero(lesion)

    def dice(cut: float) -> float:
        bright = intensity > cut
        return 2.0 * np.count_nonzero(truth & bright) / (np.count_nonzero(bright) + lesions)

    return max(dice(float(cut)) for cut in np.arange(1.0, 2.0, 0.01))


def _agreement(
    pack: ModelPack, ensemble: Ensemble, volume: Volume, brain: BrainMask, lesion: Mask
) -> dict[str, JsonValue]:
    lesions, core_median = segment(pack, ensemble, volume, brain)
    result = compare(lesion, lesions.labels > 0, volume.grid)
    found: dict[str, float | None] = {
        "dice": result.dsc,
        "best_threshold_dice": best_threshold_dice(volume, brain, lesion, core_median),
        "ppv": result.ppv,
        "sensitivity": result.sensitivity,
        "volume_reference_ml": result.volume_reference_ml,
        "volume_prediction_ml": result.volume_prediction_ml,
        "lesion_f1": result.lesion.f1,
    }
    return {name: None if value is None else round(value, 3) for name, value in found.items()}
