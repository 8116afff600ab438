"""Voxels and where they are in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
Voxels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where voxels are in the patient: the DICOM patient coordinate system, LPS, mm."""

    affine: Affine
    """(4, 4), maps (slice, row, column) indices to LPS millimetres of the voxel centre."""
    shape: tuple[int, int, int]
    """(slices, rows, columns)."""
    frame_of_reference_uid: str = ""
    """Empty for a volume that did not come from DICOM."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along (slice, row, column)."""
        slices, rows, columns = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel: the determinant, so that a sheared grid is measured rightly too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def position_lps_mm(self, index: tuple[float, float, float]) -> npt.NDArray[np.float64]:
        """Position of a (slice, row, column) index in LPS millimetres."""
        position: npt.NDArray[np.float64] = self.affine[:3, :3] @ np.asarray(index, float)
        return position + self.affine[:3, 3]


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """Intensities on a grid, with the image each slice came from."""

    voxels: Voxels
    """float32, (slices, rows, columns), Modality LUT (rescale) applied."""
    grid: Grid
    sop_instance_uids: tuple[str, ...] = field(default=())
    """Source image of every slice, in slice order; empty for a volume that is not from DICOM."""
    pixel_digest: str = ""
    """SHA-256 of the decoded voxels, in slice order: the same pixels in any transfer syntax."""
