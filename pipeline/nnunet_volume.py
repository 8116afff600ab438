"""The members of an imported pack, with nnU-Net's own preprocessing, on the source grid.

What `nnUNetv2_predict` would say of a NIfTI file of the series: nnU-Net's own preprocessor (crop to
what is not zero, normalise, resample to the spacing of the plans), its tiles and their weights, the
mean of the members' logits, its resampling back. No process is started and nothing is written.
Three things are done otherwise, and `tests/pipeline/test_nnunet_volume.py` holds the two side by
side:

- logits are summed in fp32, not in fp16: at the corners of a tile, where nnU-Net's weights are
  below what fp16 can tell apart, its own sums are rough;
- of two classes only the difference of the logits is kept: softmax needs no more;
- tiles of a 2d network go through it in batches.

A network is shown the axial view of the series, as every network here, in the orientation that its
pack names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import (
    compute_gaussian,
    compute_steps_for_sliding_window,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy.special import expit
from torch import Tensor

from dicom.errors import StudyError
from dicom.volume import Volume
from pipeline.brain import BrainMask, EmptyMaskError
from pipeline.ensemble import SLICES_PER_BATCH, Members, running
from pipeline.flow import Timed
from pipeline.model_pack import (
    DATASET,
    PLANS,
    ModelPack,
    ModelPackUnsupportedError,
    NnUNetInput,
)
from pipeline.morphology import dilate_in_plane_mm
from pipeline.orientation import AxialView, axial_view

Array = npt.NDArray[np.float32]

TILE_STEP = 0.5  # of a tile, nnUNetPredictor's default
GAUSSIAN_SIGMA = 1.0 / 8  # of a tile, and weights up to 10: as nnUNetPredictor calls it
GAUSSIAN_PEAK = 10
LARGEST_VOXELS = 200_000_000
"""Of the resampled volume: about 6 GB of work in memory. A head at 0.5 mm has 80 million."""


class TooFineError(StudyError):
    """Resampled to the spacing of the plans, the volume would not fit in memory."""

    reason = "resampled-too-large"


def untimed(_stage: str) -> AbstractContextManager[None]:
    """For those who do not want to know."""
    return nullcontext()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The volume as nnU-Net's reader would have it from a file, and the way back."""

    voxels: Array
    """(slices, rows, columns), zero outside the widened brain mask where the pack says so."""
    spacing_mm: list[float]
    view: AxialView
    flipped: tuple[int, ...]
    """Axes that run against the axial view."""

    def back(self, array: Array) -> Array:
        """An array of `voxels`' shape on the grid of the source."""
        return self.view.invert(np.ascontiguousarray(np.flip(array, self.flipped)))


def look_at(volume: Volume, brain: BrainMask, feeding: NnUNetInput) -> Seen:
    """Turn the volume as the files lay that the network was trained on, and strip it if it was."""
    view = axial_view(volume.grid)
    voxels = view.apply(volume.voxels).astype(np.float32)
    if feeding.image == "brain":
        mask = view.apply(brain.mask)
        voxels[~dilate_in_plane_mm(mask, view.grid.spacing_mm, feeding.dilation_mm)] = 0.0
    # The axial view runs to left, posterior, superior along columns, rows, slices.
    flipped = tuple(
        2 - place
        for place, (wanted, of_view) in enumerate(zip(feeding.orientation, "LPS", strict=True))
        if wanted != of_view
    )
    spacing_mm = [float(mm) for mm in view.grid.spacing_mm]
    return Seen(np.ascontiguousarray(np.flip(voxels, flipped)), spacing_mm, view, flipped)


@dataclass(frozen=True, slots=True, eq=False)
class VolumeEnsemble(Members):
    """The members of a pack that brings nnU-Net's own preprocessing."""

    _plans: PlansManager = field(init=False)
    _configuration: ConfigurationManager = field(init=False)
    _dataset: dict[str, Any] = field(init=False)

    @staticmethod
    def check_feeding(pack: ModelPack) -> None:
        """Whether the pack brings nnU-Net's own preprocessing.

        Raises:
            ModelPackUnsupportedError: It does not.
        """
        if pack.manifest.nnunet is None:
            raise ModelPackUnsupportedError(
                f"pack {pack.name} has preprocessing {pack.manifest.preprocessing!r}, not 'nnunet'"
            )

    def __post_init__(self) -> None:
        plans = PlansManager(self.pack.read_json(PLANS))
        object.__setattr__(self, "_plans", plans)
        configuration = plans.get_configuration(self.pack.manifest.configuration)
        object.__setattr__(self, "_configuration", configuration)
        object.__setattr__(self, "_dataset", self.pack.read_json(DATASET))

    def segment_volume(
        self, volume: Volume, brain: BrainMask, stage: Timed = untimed
    ) -> tuple[Array, Array]:
        """Probability of a lesion, and how far the members disagree about it.

        Args:
            volume: As acquired.
            brain: Its brain.
            stage: Times the stages.

        Returns:
            Both on the grid of the volume; 0 outside the box of what is not zero, as nnU-Net has
            it. Disagreement is the standard deviation of the members' probabilities.

        Raises:
            EmptyMaskError: Nothing is left for the network.
            TooFineError: The resampled volume would be too large.
            NetworkOutputError: A logit is not finite.
        """
        feeding = self.pack.manifest.nnunet
        if feeding is None:
            raise ModelPackUnsupportedError(f"pack {self.pack.name} has no nnU-Net input")
        with stage("preprocess"):
            seen = look_at(volume, brain, feeding)
            data, case = self._preprocess(seen)
        with stage("segment"):
            said = self._ask_members(torch.from_numpy(data))
        with stage("restore"):
            logit, disagreement = self._to_source(said, case)
            probability = self._uncropped(expit(logit), case)
            spread = self._uncropped(np.clip(disagreement, 0.0, 0.5), case)
        return seen.back(probability), seen.back(spread)

    def _preprocess(self, seen: Seen) -> tuple[Array, dict[str, Any]]:
        self._refuse_too_fine(seen)
        case: dict[str, Any] = {"spacing": seen.spacing_mm}
        data, _, case = DefaultPreprocessor(verbose=False).run_case_npy(
            seen.voxels[None], None, case, self._plans, self._configuration, self._dataset
        )
        return np.ascontiguousarray(data, dtype=np.float32), case

    def _refuse_too_fine(self, seen: Seen) -> None:
        nonzero = seen.voxels != 0
        if not nonzero.any():
            raise EmptyMaskError("no voxel that is not zero is left for the network")
        extents = []
        for axis in self._plans.transpose_forward:
            present = np.flatnonzero(nonzero.any(axis=tuple(a for a in range(3) if a != axis)))
            extents.append(int(present[-1] - present[0]) + 1)
        spacing = [seen.spacing_mm[axis] for axis in self._plans.transpose_forward]
        shape = compute_new_shape(extents, spacing, self._target_spacing(spacing))
        if np.prod(shape, dtype=np.float64) > LARGEST_VOXELS or min(shape) < 1:
            raise TooFineError(
                f"at the model's spacing of {self._configuration.spacing} mm the volume would have"
                f" {' x '.join(map(str, shape))} voxels"
            )

    def _target_spacing(self, spacing_mm: list[float]) -> list[float]:
        """Of the network, with the slices of the source where it looks at one at a time."""
        target = [float(mm) for mm in self._configuration.spacing]
        return target if len(target) == 3 else [spacing_mm[0], *target]

    def _ask_members(self, data: Tensor) -> Array:
        """(2, slices, rows, columns): mean foreground logit against background, disagreement."""
        shape = tuple(data.shape[1:])
        logit = torch.zeros(shape, dtype=torch.float32)
        # float64: the variance below is a difference of two nearly equal sums.
        total, squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        for member in self._members:
            with running(self.threads):
                self._take(member)
                foreground = self._sliding(data)
                self._refuse_not_finite(foreground)
                logit += foreground
                probability = torch.sigmoid(foreground).double()
                total += probability
                squares += probability**2
        count = len(self._members)
        spread = (squares / count - (total / count) ** 2).clamp(min=0).sqrt()
        said: Array = np.stack([(logit / count).numpy(), spread.float().numpy()])
        return said

    def _sliding(self, data: Tensor) -> Tensor:
        """Foreground logit minus background's, as `nnUNetPredictor` puts its tiles together."""
        patch = [int(size) for size in self._configuration.patch_size]
        padded, inside = pad_nd_image(data, patch, "constant", {"value": 0}, True, None)
        weight = compute_gaussian(
            tuple(patch), GAUSSIAN_SIGMA, GAUSSIAN_PEAK, device=torch.device("cpu")
        ).float()
        total, weights = (torch.zeros(padded.shape[1:], dtype=torch.float32) for _ in range(2))
        # Batches of 3-D tiles would only need more memory.
        usual = SLICES_PER_BATCH.get(self.device.type, 1) if len(patch) == 2 else 1
        batch = self.slices_per_batch or usual
        waiting = _tiles(padded.shape[1:], patch)
        while tiles := list(islice(waiting, batch)):
            images = torch.stack([padded[(slice(None), *tile)] for tile in tiles])
            logits = self._mirrored(images.to(self.device)).cpu()
            for tile, one in zip(tiles, logits[:, 1] - logits[:, 0], strict=True):
                total[tile] += one * weight
                weights[tile] += weight
        mean: Tensor = (total / weights)[tuple(inside[1:])]
        return mean

    def _to_source(self, said: Array, case: dict[str, Any]) -> Array:
        """Resampled as nnU-Net resamples logits on export; linear, so it may be done to a mean."""
        spacing = [case["spacing"][axis] for axis in self._plans.transpose_forward]
        resampled = self._configuration.resampling_fn_probabilities(
            said,
            case["shape_after_cropping_and_before_resampling"],
            self._target_spacing(spacing),
            spacing,
        )
        return np.asarray(resampled, dtype=np.float32)

    def _uncropped(self, values: Array, case: dict[str, Any]) -> Array:
        """Crop and transposition taken back; 0 outside the crop."""
        whole = np.zeros(case["shape_before_cropping"], np.float32)
        whole[tuple(slice(low, high) for low, high in case["bbox_used_for_cropping"])] = values
        return whole.transpose(self._plans.transpose_backward)


def _tiles(shape: tuple[int, ...], patch: list[int]) -> Iterator[tuple[Any, ...]]:
    """Of (slices, rows, columns), in nnU-Net's order: of every slice, or of the volume."""
    along = compute_steps_for_sliding_window(shape[3 - len(patch) :], patch, TILE_STEP)
    slices = [(index,) for index in range(shape[0])] if len(patch) == 2 else [()]
    for one, starts in product(slices, product(*along)):
        yield (
            *one,
            *(slice(start, start + size) for start, size in zip(starts, patch, strict=True)),
        )
