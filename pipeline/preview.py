"""The slices of a result as pictures for the operator page, in one file.

The service that shows them holds no pixels, so the worker draws them when the result is made::

    preview.zip
        index.json            width, height, number of slices, which have lesions
        slice/012.png         grey
        lesions/012.png       colours on nothing, where the slice has lesions

They are no result: nothing of them leaves the node.
"""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from pipeline.appearance import colour_rgb
from pipeline.flow import Analysis
from pipeline.slice_picture import draw_layers, view_of

PREVIEW_FILE: Final = "preview.zip"
ROOM: Final = (640, 640)


def write_preview(path: Path, analysis: Analysis) -> None:
    """Draw every slice of an analysis whose mask is shown."""
    volume, labels = analysis.volume, analysis.lesions.labels
    view = view_of(volume, analysis.brain.mask, labels)
    width, height = view.size(*ROOM)
    # PNG is compressed already; the names in it are ours.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for index in range(len(labels)):
            grey, lesions = draw_layers(volume, labels, index, view, ROOM)
            file.writestr(f"slice/{index:03}.png", _png(grey))
            if lesions is not None:
                file.writestr(f"lesions/{index:03}.png", _png(lesions))
        content = {
            "slices": len(labels),
            "width": width,
            "height": height,
            "with_lesions": [int(one) for one in np.flatnonzero(labels.any(axis=(1, 2)))],
            "colours": {
                lesion.label: "#{:02x}{:02x}{:02x}".format(*colour_rgb(lesion.label))
                for lesion in analysis.findings.lesions
            },
        }
        file.writestr("index.json", json.dumps(content))


def _png(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG", compress_level=4)  # 9 takes thrice as long for a tenth less
    return content.getvalue()
