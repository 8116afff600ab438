"""What of nnU-Net's `plans.json` and `dataset.json` can be run here, by name.

Plans name classes and functions, and nnU-Net imports or calls whatever is named: here every name is
looked up in a list first, and every size has a bound, before anything is built. Plans may come from
anywhere (`flairnode model import`, `flairnode model install`).

Source: nnunetv2 2.8.1, `plans_handler.PlansManager`, `label_handling.LabelManager`,
`default_preprocessor.DefaultPreprocessor`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pipeline.model_pack import DATASET, PLANS, ModelPackError, ModelPackUnsupportedError

_UNETS = "dynamic_network_architectures.architectures.unet"
NETWORKS = frozenset(
    f"{_UNETS}.{name}" for name in ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
)
"""nnU-Net's own, residual encoders (ResEnc M, L, XL) among them. Its transformers import timm, and
timm's torchvision does not work beside a CPU build of torch."""
_LAYERS = {
    "conv": ("Conv2d", "Conv3d"),
    "instancenorm": ("InstanceNorm2d", "InstanceNorm3d"),
    "dropout": ("Dropout", "Dropout2d", "Dropout3d"),
    "activation": ("LeakyReLU", "ReLU", "ELU", "GELU", "SiLU", "Mish", "PReLU"),
}
LAYERS = frozenset(
    f"torch.nn.{place}{name}"
    for module, names in _LAYERS.items()
    for name in names
    for place in ("", f"modules.{module}.")
)
"""Whole names, not a prefix: `torch.nn.modules.utils.x.y` reaches anything that torch imports."""
LARGEST_SIZE = 4096  # features, kernels, strides; nnU-Net's largest plans have 512
MOST_STAGES = 16  # nnU-Net's have up to 8
MOST_LAYERS = 64  # convolutions or blocks of one stage; ResEnc XL has 12
LARGEST_PATCH = 256**3  # nnU-Net's largest presets, for 80 GB, are near 256 x 192 x 192

READERS = {
    "SimpleITKIO": "LPS",
    "NibabelIO": "LPS",
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}
"""Readers of volumes, and how the arrays lie that they make of this series. The first two take a
file as it lies: as DICOM has it, axial slices from below, rows to posterior, columns to the left.
Readers of pictures (PNG, TIFF) invent the spacing: a network trained so cannot be fed millimetres.
"""
NORMALISATIONS = frozenset(
    {"ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "CTNormalization"}
)
_CT_PROPERTIES = ("mean", "std", "percentile_00_5", "percentile_99_5")
RESAMPLINGS = {
    "resample_data_or_seg_to_shape": {
        "is_seg",
        "order",
        "order_z",
        "force_separate_z",
        "separate_z_anisotropy_threshold",
    },
    "resample_torch_fornnunet": {
        "is_seg",
        "num_threads",
        "memefficient_seg_resampling",
        "force_separate_z",
        "separate_z_anisotropy_threshold",
        "mode",
        "aniso_axis_mode",
    },
    "no_resampling_hack": set[str](),
}
"""nnU-Net's functions, and the settings of each."""
DIMENSIONS = {"2d": 2, "3d_fullres": 3}


class SeveralChannelsError(ModelPackUnsupportedError):
    """The network wants more than a FLAIR."""

    reason: ClassVar[str] = "several-channels"


class SeveralClassesError(ModelPackUnsupportedError):
    """The network tells more apart than background and lesion."""

    reason: ClassVar[str] = "several-classes"


class ConfigurationNotSupportedError(ModelPackUnsupportedError):
    """A cascade, a low resolution, or a configuration of another name."""

    reason: ClassVar[str] = "configuration-not-supported"


class NetworkNotSupportedError(ModelPackUnsupportedError):
    """A network of other parts than nnU-Net's own U-Nets."""

    reason: ClassVar[str] = "network-not-supported"


class PreprocessingNotSupportedError(ModelPackUnsupportedError):
    """A reader, normalisation or resampling that is not nnU-Net's for volumes of one channel."""

    reason: ClassVar[str] = "preprocessing-not-supported"


Json = Mapping[str, Any]


def check_dataset(dataset: Json) -> None:
    """One channel, and two classes that are labels.

    Raises:
        SeveralChannelsError: More or fewer channels than one.
        SeveralClassesError: More foreground classes, or regions.
        ModelPackError: Not nnU-Net's `dataset.json`.
    """
    # `modality` is what nnU-Net v1 called it; v2 reads both (determine_num_input_channels).
    channels = dataset.get("channel_names", dataset.get("modality"))
    labels = dataset.get("labels")
    if not isinstance(channels, dict) or not isinstance(labels, dict):
        raise ModelPackError(f"{DATASET} is not nnU-Net's: it names no channels or no labels")
    if len(channels) != 1:
        raise SeveralChannelsError(
            f"the network takes {len(channels)} image channels, not one:"
            f" {', '.join(str(name) for name in channels.values())}"
        )
    regions = [name for name, value in labels.items() if isinstance(value, list)]
    if regions or dataset.get("regions_class_order") is not None:
        raise SeveralClassesError(
            f"the network was trained on regions ({', '.join(map(str, regions))}), not on labels"
        )
    classes = {name: value for name, value in labels.items() if name != "ignore"}
    if sorted(str(value) for value in classes.values()) != ["0", "1"] or (
        str(classes.get("background")) != "0"
    ):
        raise SeveralClassesError(
            f"the network tells other classes than background (0) and lesion (1): {classes}"
        )


def check_configuration(plans: Json, name: str) -> Json:
    """The configuration of that name, once everything that it names or sizes is known to be safe.

    Raises:
        ConfigurationNotSupportedError: Not `2d` or `3d_fullres`, or one stage of a cascade.
        NetworkNotSupportedError: See `check_network`.
        PreprocessingNotSupportedError: See there.
        ModelPackError: Not nnU-Net's `plans.json`.
    """
    if name not in DIMENSIONS:
        raise ConfigurationNotSupportedError(
            f"configuration {name!r}: only {' and '.join(DIMENSIONS)} can be run"
        )
    try:
        configuration: Json = plans["configurations"][name]
        if configuration.get("previous_stage") is not None:
            raise ConfigurationNotSupportedError(
                f"{name} is a stage of a cascade: it needs {configuration['previous_stage']} first"
            )
        _check_sizes(plans, configuration, DIMENSIONS[name])
        check_network(configuration, DIMENSIONS[name])
        _check_preprocessing(plans, configuration)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelPackError(f"{PLANS} is not nnU-Net's: {error!r}") from error
    return configuration


def check_network(configuration: Json, dimensions: int) -> None:
    """Only nnU-Net's U-Nets, of torch's layers, of sizes that can be built.

    Raises:
        NetworkNotSupportedError: A class, a layer or a size beyond that.
        ModelPackError: No network is described.
    """
    try:
        architecture = configuration["architecture"]
        arguments = architecture["arch_kwargs"]
        layers = [arguments[name] for name in architecture["_kw_requires_import"]]
        class_name = architecture["network_class_name"]
        sizes = list(_sizes(arguments))
        stages = arguments["n_stages"]
        convolution = arguments["conv_op"]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelPackError(f"{PLANS} describes no network: {error!r}") from error
    if class_name not in NETWORKS:
        raise NetworkNotSupportedError(
            f"{PLANS} names the network {class_name!r}; known are nnU-Net's U-Nets:"
            f" {', '.join(sorted(name.rpartition('.')[2] for name in NETWORKS))}"
        )
    for layer in layers:
        if layer is not None and layer not in LAYERS:
            raise NetworkNotSupportedError(f"{PLANS} names {layer!r}, which is no layer of torch")
    if not str(convolution).endswith(f"Conv{dimensions}d"):
        raise NetworkNotSupportedError(f"{convolution!r} in a network of {dimensions} dimensions")
    counts = [
        *_sizes(arguments.get("n_conv_per_stage")),
        *_sizes(arguments.get("n_conv_per_stage_decoder")),
        *_sizes(arguments.get("n_blocks_per_stage")),
    ]
    if (
        not isinstance(stages, int)
        or not 2 <= stages <= MOST_STAGES
        or max(sizes, default=0) > LARGEST_SIZE
        or max(counts, default=0) > MOST_LAYERS
    ):
        raise NetworkNotSupportedError(
            f"a network of {stages} stages, {max(counts, default=0)} layers a stage and sizes up"
            f" to {max(sizes, default=0)}: nnU-Net plans none so large"
        )


def _sizes(value: object) -> Iterator[int]:
    """Every whole number in nested lists and objects; a long list counts with its length."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield abs(value)
    elif isinstance(value, (list, tuple, dict)):
        yield len(value) if len(value) <= MOST_STAGES * 4 else LARGEST_SIZE + 1
        for one in value.values() if isinstance(value, dict) else value:
            yield from _sizes(one)


def _check_sizes(plans: Json, configuration: Json, dimensions: int) -> None:
    patch, spacing = configuration["patch_size"], configuration["spacing"]
    if len(patch) != dimensions or len(spacing) != dimensions:
        raise ModelPackError(f"patch {patch} and spacing {spacing} are not of {dimensions} axes")
    if not all(isinstance(n, int) and n > 0 for n in patch) or math.prod(patch) > LARGEST_PATCH:
        raise NetworkNotSupportedError(f"a patch of {patch} voxels")
    if not all(isinstance(mm, (int, float)) and 0.05 < mm < 50 for mm in spacing):
        raise PreprocessingNotSupportedError(
            f"a spacing of {spacing}: not millimetres of a volume (of pictures, nnU-Net invents it)"
        )
    forward, backward = plans["transpose_forward"], plans["transpose_backward"]
    if sorted(forward) != [0, 1, 2] or [forward[axis] for axis in backward] != [0, 1, 2]:
        raise ModelPackError(f"transpose_forward {forward} and transpose_backward {backward}")


def _check_preprocessing(plans: Json, configuration: Json) -> None:
    """Reader, normalisation and resampling are nnU-Net's, for volumes of one channel."""
    reader, manager = plans.get("image_reader_writer"), plans.get("label_manager", "LabelManager")
    if reader not in READERS:
        raise PreprocessingNotSupportedError(
            f"trained on files read by {reader!r}; known are readers of volumes:"
            f" {', '.join(READERS)}"
        )
    if manager != "LabelManager":
        raise PreprocessingNotSupportedError(f"the label manager {manager!r}")
    if (found := configuration["preprocessor_name"]) != "DefaultPreprocessor":
        raise PreprocessingNotSupportedError(f"the preprocessor {found!r}")
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if len(schemes) != 1 or schemes[0] not in NORMALISATIONS:
        raise PreprocessingNotSupportedError(
            f"the normalisation {schemes}; known for one channel: {', '.join(NORMALISATIONS)}"
        )
    if len(masked) != 1 or not isinstance(masked[0], bool):
        raise ModelPackError(f"use_mask_for_norm is {masked}, one truth value is expected")
    if schemes[0] == "CTNormalization":
        properties = plans["foreground_intensity_properties_per_channel"]["0"]
        values = [properties[name] for name in _CT_PROPERTIES]
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
            raise ModelPackError(f"CTNormalization with {dict(properties)}")
    for use in ("data", "seg", "probabilities"):
        name = configuration[f"resampling_fn_{use}"]
        settings = configuration[f"resampling_fn_{use}_kwargs"]
        if name not in RESAMPLINGS or set(settings) - RESAMPLINGS[name]:
            raise PreprocessingNotSupportedError(f"resampling by {name!r} with {settings}")
