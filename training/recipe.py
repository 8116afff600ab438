"""A recipe: everything that decides what a fold learns, as data.

A recipe is a TOML file; those that ship are in `training/recipes`. A run keeps a copy beside its
folds, and goes on only with the same one. Each departure from the paper or from nnU-Net stands in
the recipe with its reason, and ends up on the card of the pack.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicom.errors import StudyError
from pipeline.model_pack import canonical_json
from pipeline.preprocess import CanvasSpec, Normalisation

SHIPPED = Path(__file__).parent / "recipes"


class RecipeError(StudyError):
    """The recipe cannot be used. Nothing was trained."""

    reason: ClassVar[str] = "recipe-invalid"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=1)]


class CanvasInput(_Part):
    """Slices on a canvas, as `pipeline.preprocess` makes them: the node feeds the network alike."""

    rows: Annotated[int, Field(ge=32, le=2048, multiple_of=16)]
    columns: Annotated[int, Field(ge=32, le=2048, multiple_of=16)]
    pixel_mm: Positive
    normalisation: Normalisation
    dilation_mm: Annotated[float, Field(ge=0)]

    def spec(self) -> CanvasSpec:
        """For `pipeline.preprocess.prepare`."""
        return CanvasSpec(**dict(self))


class Cases(_Part):
    """What one case of the dataset is."""

    unit: Literal["slice", "volume"] = "volume"
    """slice: every slice is a case, as in the paper. volume: slices are drawn from whole volumes,
    so that a patient with many slices counts no more than another."""
    entropy_rule: bool = False
    """Remove slices whose mask has H < 0.01 bit (`training.entropy_rule`). Training slices and, as
    in the paper, those a fold is validated on; never the test set."""
    copies: Annotated[int, Field(ge=0, le=50)] = 0
    """Augmented copies of each kept slice (`training.paper_augment`); of training slices only."""
    semi_synthetic: Share = 0.0
    """Share of training images in which lesions of another training patient are inserted
    (`training.enlarge`). Never in an image that a fold is validated on or that is tested."""

    @model_validator(mode="after")
    def _slices(self) -> Self:
        if self.unit == "volume" and (self.entropy_rule or self.copies):
            raise ValueError("entropy_rule and copies are rules on slices: unit = 'slice'")
        return self


class Training(_Part):
    """How the weights are found."""

    epochs: Whole
    iterations_per_epoch: Whole = 250
    validation_iterations: Whole = 50
    batch_size: Whole | None = None
    """None: what nnU-Net's planner gives, for 8 GB. The plans of a run always name a number."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd: Nesterov momentum 0.99, as nnU-Net."""
    learning_rate: Positive = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 3e-5
    schedule: Literal["poly", "cosine"] = "poly"
    """poly: (1 - epoch / epochs) ^ 0.9, per epoch, as nnU-Net. cosine: per iteration, to zero."""
    warm_up_iterations: Annotated[int, Field(ge=0)] = 0
    """Of a cosine schedule."""
    gradient_norm: Positive = 12.0
    loss: Literal["dice-ce", "dice-bce"] = "dice-ce"
    """Batch soft Dice plus cross-entropy of a softmax, or of a sigmoid."""
    dice_weight: Positive = 1.0
    """Of the Dice loss beside the cross-entropy."""
    scale_weights: tuple[float, ...] | None = None
    """Deep supervision, full scale first. None: nnU-Net's (halved each time, last one 0)."""
    foreground_share: Share = 0.33
    """Of a batch's images that hold a lesion for certain: nnU-Net's oversampling."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of a running average of the weights, which is then what a fold is; 0: none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """On a CPU. On a GPU nnU-Net's automatic mixed precision is used."""
    plateau_epochs: Whole = 50
    """Without a better validation Dice for so long, a plateau is reported. Nothing is stopped."""


class Departure(_Part):
    """One thing that is done otherwise than where it comes from."""

    of: Literal["paper", "nnU-Net"]
    what: str
    reason: str


class Recipe(_Part):
    """One file of `training/recipes`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    summary: str
    configuration: Literal["2d", "3d_fullres"] = "2d"
    preprocessing: Literal["canvas", "nnunet"]
    """canvas: `pipeline.preprocess`. nnunet: nnU-Net's own fingerprint, plans and preprocessing."""
    canvas: CanvasInput | None = None
    skull_strip: bool = True
    """Of the images, with the node's own, before anything else."""
    cases: Cases = Cases()
    augmentation: Literal["nnunet", "site"]
    """Online. nnunet: its own transforms. site: domain randomisation of slice thickness, pixel
    size, bias, noise and contrast (`training.augment`)."""
    architecture: dict[str, Any] | None = None
    """`architecture` of nnU-Net's plans. None: what nnU-Net's planner makes of the patch."""
    mirroring_axes: tuple[Literal[0, 1, 2], ...] | None = None
    """Axes the network may be mirrored along in inference. None: nnU-Net's, all."""
    training: Training
    patient_folds: bool = True
    """False: the starter alone, whose members differ by seed."""
    departures: tuple[Departure, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.preprocessing == "canvas") != (self.canvas is not None):
            raise ValueError("`canvas` is given exactly when preprocessing is 'canvas'")
        if self.preprocessing == "canvas" and self.configuration != "2d":
            raise ValueError("a canvas is two-dimensional")
        if self.preprocessing == "nnunet" and (
            self.cases != Cases() or self.augmentation != "nnunet"
        ):
            raise ValueError("nnU-Net's preprocessing goes with its own cases and augmentation")
        if self.preprocessing == "canvas" and self.training.batch_size is None:
            raise ValueError("a canvas needs training.batch_size: no planner looks at it")
        if self.augmentation == "site":
            if self.cases.unit != "volume":
                raise ValueError("augmentation 'site' draws slices from volumes: unit = 'volume'")
            if self.canvas is not None and self.canvas.normalisation != "starter":
                raise ValueError("augmentation 'site' counts in core medians: 'starter'")
        elif self.cases.semi_synthetic:
            raise ValueError("semi_synthetic is a share of drawn slices: augmentation = 'site'")
        return self

    @property
    def axes_mirrored(self) -> tuple[int, ...]:
        """nnU-Net's `inference_allowed_mirroring_axes`."""
        if self.mirroring_axes is not None:
            return self.mirroring_axes
        return (0, 1) if self.configuration == "2d" else (0, 1, 2)

    @property
    def digest(self) -> str:
        """SHA-256 of what the recipe says: another one, other weights."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the software."""
    return sorted(one.stem for one in SHIPPED.glob("*.toml"))


def load_recipe(name_or_path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe that ships, by name, or one of a site, by path.

    Args:
        name_or_path: `paper-2d`, or a TOML file.
        changes: Of `[training]`, as a command line may ask for: `epochs`, `batch_size`. They become
            part of the recipe that the run keeps.

    Raises:
        RecipeError: There is none, or it is not valid.
    """
    wanted = str(name_or_path)
    path = Path(wanted) if wanted.endswith(".toml") else SHIPPED / f"{wanted}.toml"
    if not path.is_file():
        known = ", ".join(shipped_recipes())
        raise RecipeError(
            f"no recipe {wanted!r}: those that ship are {known}; or name a .toml file"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if changes:
            content["training"] = {**content.get("training", {}), **changes}
        return Recipe.model_validate(content)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path.name} is no TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'recipe'}: {one['msg']}" for one in error.errors()
        )
        raise RecipeError(f"{path.name}: {problems}") from error
