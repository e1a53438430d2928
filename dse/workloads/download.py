"""Published data sets: from a local folder, from the cache, or from their publisher; verified."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import lzma
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dse.errors import WorkloadError
from dse.workloads.dataset import REQUIRED_ARRAYS

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]

TIMEOUT_S = 30
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One array of a publication: its idx file (gzip) and the sha256 of the decoded raw bytes."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Publication:
    """A data set of images as its publisher offers it: where, and what it must decode to."""

    name: str
    mirrors: tuple[str, ...]
    parts: Mapping[str, Part]


def _idx(x_train: str, y_train: str, x_test: str, y_test: str) -> Mapping[str, Part]:
    """The four files under the names that both publishers use."""
    return {
        "x_train": Part("train-images-idx3-ubyte.gz", x_train),
        "y_train": Part("train-labels-idx1-ubyte.gz", y_train),
        "x_test": Part("t10k-images-idx3-ubyte.gz", x_test),
        "y_test": Part("t10k-labels-idx1-ubyte.gz", y_test),
    }


MNIST = Publication(
    "mnist",
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    _idx(
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
)
FASHION_MNIST = Publication(
    "fashion_mnist",
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    _idx(
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
)


def cache_folder() -> Path:
    """Where data sets are kept: DSE_CACHE, else ~/.cache/dse."""
    return Path(os.environ.get("DSE_CACHE") or Path.home() / ".cache" / "dse")


def local_folder() -> Path | None:
    """The folder DSE_DATA names, whose <name>.npz files go before anything else."""
    named = os.environ.get("DSE_DATA")
    return Path(named) if named else None


def published_arrays(
    publication: Publication, *, local: Path | None = None, cache: Path | None = None
) -> Arrays:
    """`x_train, y_train, x_test, y_test` as uint8, images (N, H, W), labels (N,).

    Looked for in this order: <local>/<name>.npz (default: DSE_DATA), the cache (default: DSE_CACHE
    or ~/.cache/dse), the publisher. A download is accepted when every decoded array has the
    published sha256; another local file of the right format is accepted with a warning.
    Raises WorkloadError when it is nowhere, damaged or of another format.
    """
    local = local or local_folder()
    cache = cache or cache_folder()
    archive = local / f"{publication.name}.npz" if local is not None else None
    if archive is not None and archive.is_file():
        return _from_archive(publication, archive, cache)
    folder = cache / "datasets" / publication.name
    kept = _load_kept(folder)
    if kept is not None and matches(publication, kept):
        return kept
    return _keep(folder, _download(publication, archive, folder))


def matches(publication: Publication, arrays: Arrays) -> bool:
    """Whether the arrays are the published ones, byte for byte."""
    return all(_sha256(arrays[key]) == part.sha256 for key, part in publication.parts.items())


def _from_archive(publication: Publication, archive: Path, cache: Path) -> Arrays:
    """A local .npz, decoded once: the cache is keyed by the archive's own sha256."""
    key = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    folder = cache / "datasets" / f"{publication.name}-{key}"
    if (kept := _load_kept(folder)) is not None:
        return kept
    try:
        with np.load(archive, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in REQUIRED_ARRAYS}
    except KeyError as error:
        raise WorkloadError(
            f"{archive} lacks an array ({error.args[0]}); it needs {', '.join(REQUIRED_ARRAYS)}"
        ) from error
    except UNREADABLE as error:
        raise WorkloadError(f"{archive} is not a readable .npz file: {error}") from error
    _check_format(archive, arrays)
    if not matches(publication, arrays):
        log.warning("%s is not the published %s; it is used as it is", archive, publication.name)
    return _keep(folder, arrays)


def _check_format(archive: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        dimensions = 3 if name.startswith("x_") else 1
        if array.dtype != np.uint8 or array.ndim != dimensions:
            shape = "(N, H, W)" if dimensions == 3 else "(N,)"
            raise WorkloadError(
                f"{archive}: {name} is {array.dtype} of shape {array.shape}; "
                f"it must be uint8 of shape {shape}"
            )


def _download(publication: Publication, archive: Path | None, folder: Path) -> Arrays:
    return {
        key: _fetch_part(publication, part, archive, folder)
        for key, part in publication.parts.items()
    }


def _fetch_part(publication: Publication, part: Part, archive: Path | None, folder: Path) -> Array:
    """The first mirror whose file decodes to the published content."""
    misses = []
    for mirror in publication.mirrors:
        log.info("downloading %s%s", mirror, part.file)
        try:
            array = read_idx(gzip.decompress(_get(mirror + part.file)))
        except (*UNREADABLE, http.client.HTTPException) as error:
            misses.append(f"{mirror}{part.file}: {_short(error)}")
            continue
        if (found := _sha256(array)) == part.sha256:
            return array
        misses.append(
            f"{mirror}{part.file}: sha256 {found[:12]}... instead of {part.sha256[:12]}..."
        )
    looked = f"DSE_DATA ({archive})" if archive is not None else "DSE_DATA (not set)"
    raise WorkloadError(
        f"data set '{publication.name}' is missing {part.file}: it is not in {looked}, not in the "
        f"cache ({folder}), and could not be downloaded ({'; '.join(misses)}); go online once, or "
        f"set DSE_DATA to a folder that holds {publication.name}.npz"
    )


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
        content: bytes = response.read()
    return content


def read_idx(content: bytes) -> Array:
    """The uint8 array of an idx file (http://yann.lecun.com/exdb/mnist/): magic, sizes, bytes.

    Raises ValueError when the header or the length is wrong.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"not an idx file of unsigned bytes (it begins with {content[:4].hex()})")
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).astype(np.int64)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if len(values) != int(shape.prod()):
        raise ValueError(f"{len(values)} bytes of data where {int(shape.prod())} are announced")
    return values.reshape(tuple(shape))


def _load_kept(folder: Path) -> Arrays | None:
    """The arrays of a cache folder, memory-mapped; None when one is missing or unreadable."""
    try:
        return {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in REQUIRED_ARRAYS
        }
    except (OSError, ValueError, EOFError):
        return None


def _keep(folder: Path, arrays: Arrays) -> Arrays:
    """Write the arrays to the cache, each at once or not at all; a full disk only costs speed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            _write(folder / f"{name}.npy", array)
    except OSError as error:
        log.warning("the data set is not kept in %s: %s", folder, error)
    return arrays


def _write(path: Path, array: Array) -> None:
    """Write under another name, then rename: a reader never sees half a file."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.npy")
    try:
        np.save(partial, array)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _short(error: Exception) -> str:
    return str(error) or type(error).__name__
