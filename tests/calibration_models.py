"""The MLPerf Tiny int8 reference models, where the calibration folder is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "calibration" / "models"
FILES: Mapping[str, str] = {
    "ad": "ad01_int8.tflite",
    "ic": "pretrainedResnet_quant.tflite",
    "kws": "kws_ref_model.tflite",
    "sww": "str_ww_ref_model.tflite",
    "vww": "vww_96_int8.tflite",
}


def model_path(name: str) -> Path:
    """The file of a network; the test is skipped where the folder is not there."""
    path = FOLDER / FILES[name]
    if not path.exists():
        pytest.skip(f"needs the calibration models; {path} is not there")
    return path


def model_file(name: str) -> bytes:
    return model_path(name).read_bytes()
