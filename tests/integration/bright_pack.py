"""A real pack whose weights are set by hand: a pixel is lesion when it is bright enough.

A demo that is tested with it depends on no training, and its result can be worked out: on the
canvas x = value / (1.9 x core median), white matter lies near 1 / 1.9 = 0.53 and lesions near 0.72.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.model_pack import Canvas, ModelPack, Weights, write_pack
from tests.pipeline.tiny_pack import DATASET_JSON, describe, make_plans, parameter_shapes

ROWS, COLUMNS = 224, 192
THRESHOLDS = (0.650, 0.655, 0.660, 0.665, 0.670)
"""Of the five members, 1.24 to 1.27 times the core median."""
STEEPNESS = 60.0
FEATURES = (2, 2, 2)


def make_bright_pack(path: Path) -> ModelPack:
    plans = make_plans(ROWS, COLUMNS, FEATURES)
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["norm_op"] = None  # the brightness itself counts, not that of a slice's own scale
    arguments["norm_op_kwargs"] = {}
    shapes = parameter_shapes(plans)
    return write_pack(
        path,
        describe(
            name="bright",
            canvas=Canvas(
                rows=ROWS, columns=COLUMNS, pixel_mm=1, normalisation="starter", dilation_mm=0
            ),
        ),
        plans=plans,
        dataset_json=DATASET_JSON,
        weights={fold: member(shapes, level) for fold, level in enumerate(THRESHOLDS)},
        card="# Bright\n",
    )


def member(shapes: dict[str, tuple[int, ...]], threshold: float) -> Weights:
    """The image passes the first stage and the last decoder stage unchanged; the rest is dark."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    encoder = [n for n in sorted(shapes) if n.startswith("encoder.stages.0.") and _is_kernel(n)]
    decoder = [n for n in sorted(shapes) if n.startswith("decoder.stages.") and _is_kernel(n)]
    for name in encoder:
        weights[name][0, 0, 1, 1] = 1  # channel 0, middle of the 3 x 3 kernel
    # The last decoder stage sees [from below, from the first stage]: take the second.
    weights[decoder[-1]][0, FEATURES[0], 1, 1] = 1
    last = max(name for name in shapes if "seg_layers" in name and name.endswith("weight"))
    weights[last][1, 0] = STEEPNESS
    weights[last.replace("weight", "bias")][1] = -STEEPNESS * threshold
    return weights


def _is_kernel(name: str) -> bool:
    return name.endswith("conv.weight") and "all_modules" not in name
