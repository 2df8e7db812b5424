#!/usr/bin/env python3
"""Install Detectron2, which is on no package index under its own name.

A Detectron2 0.6 or newer that the running Python can already import, for example one built from
the official main branch, is left alone. Otherwise this downloads the source archive
`pb1-detectron2==0.6` from the package index (its Python files are those of the official v0.6 tag;
the C++ sources are missing), checks its SHA-256, applies the compatibility edits listed in EDITS
below, and installs the result as a pure-Python wheel named `detectron2`. What needs Detectron2's
compiled extension (rotated boxes, deformable convolution) then says so when it is used;
everything else works. torch and torchvision must be installed first.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

__all__ = [
    "ADDED_FILES",
    "EDITS",
    "AddedFile",
    "Edit",
    "InstallError",
    "add_files",
    "apply_edits",
    "build_wheel",
    "check_sha256",
    "find_detectron2",
    "main",
    "unpack",
]

SDIST_NAME = "pb1-detectron2"
SDIST_VERSION = "0.6"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
MINIMUM_VERSION = (0, 6)

# pip 26.3 refuses to download any archive from PyPI whose metadata names a URL as a dependency, and
# this one does so in an optional extra, which is never installed. Which pip to trust is the user's
# choice: the refusal is reported with the newest pip that was seen to download it.
WORKING_PIP = "25.3"
PIP_REFUSES_URLS = "cannot declare direct URL dependencies"

PIP_OPTIONS = ("--disable-pip-version-check", "--no-input", "--retries", "2")

# The projects that v0.6's own setup.py installs as detectron2.projects.*
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# v0.6's install_requires, less `black` (formats saved lazy configs, pinned to a 2021 beta),
# `future` (Caffe2 only), `dataclasses` (Python 3.6 only) and the upper bound of iopath (< 0.1.10).
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "pydot",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)


class InstallError(Exception):
    """A reason, in one line, why Detectron2 could not be installed."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """Replace `old` by `new` in one file of the archive, exactly `count` times."""

    path: str
    old: str
    new: str
    reason: str
    count: int = 1


@dataclasses.dataclass(frozen=True)
class AddedFile:
    """A file that the archive does not have and the edited ones need."""

    path: str
    text: str
    reason: str


NUMPY_ALIAS = "numpy 1.24 removed the aliases of Python's own types"
NO_EXTENSION = "the pure-Python wheel has no compiled extension: fail on use, not on import"
NO_OPENCV = "OpenCV is no dependency of Detectron2: fail on use, not on import"
IMPORT_C = "from detectron2 import _C\n"
IMPORT_MISSING_C = "from detectron2.utils.missing import _C\n"

ADDED_FILES = (
    AddedFile(
        "detectron2/utils/missing.py",
        '''\
"""Stand-ins for modules that need not be there: using them, not importing them, fails."""


class _Missing:
    """Any attribute, except Python's own, raises ImportError with one sentence."""

    def __init__(self, module, remedy):
        self._module = module
        self._remedy = remedy

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{name} needs {self._module}, which is not installed: {self._remedy}")


_C = _Missing(
    "detectron2._C",
    "this is a pure-Python build of Detectron2; build the official sources to have it.",
)

try:
    import cv2
except ImportError:
    cv2 = _Missing("cv2", "pip install opencv-python-headless.")
''',
        "what the edited modules import in place of the missing extension and of OpenCV",
    ),
)

EDITS = (
    # -- no compiled extension ------------------------------------------------------------------
    Edit("detectron2/layers/deform_conv.py", IMPORT_C, IMPORT_MISSING_C, NO_EXTENSION),
    Edit("detectron2/layers/roi_align_rotated.py", IMPORT_C, IMPORT_MISSING_C, NO_EXTENSION),
    Edit("detectron2/layers/rotated_boxes.py", IMPORT_C, IMPORT_MISSING_C, NO_EXTENSION),
    Edit("detectron2/evaluation/fast_eval_api.py", IMPORT_C, IMPORT_MISSING_C, NO_EXTENSION),
    Edit(
        "detectron2/layers/nms.py",
        "from torchvision.ops import nms  # BC-compat\n",
        f"from torchvision.ops import nms  # BC-compat\n\n{IMPORT_MISSING_C}",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/layers/nms.py",
        "    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)\n",
        "    return _C.nms_rotated(boxes, scores, iou_threshold)\n",
        NO_EXTENSION,
    ),
    Edit(
        "detectron2/evaluation/coco_evaluation.py",
        "        self._use_fast_impl = use_fast_impl\n",
        "        # The wheel has no compiled evaluation: pycocotools gives the same numbers.\n"
        "        self._use_fast_impl = False\n",
        "COCOEvaluator asks for the compiled evaluation by default; pycocotools gives its numbers",
    ),
    # -- packages that v0.6 imports but does not require ----------------------------------------
    Edit(
        "detectron2/utils/visualizer.py",
        "\nimport cv2\n",
        "\nfrom detectron2.utils.missing import cv2\n",
        NO_OPENCV,
    ),
    Edit(
        "projects/PointRend/point_rend/color_augmentation.py",
        "\nimport cv2\n",
        "\nfrom detectron2.utils.missing import cv2\n",
        NO_OPENCV,
    ),
    Edit(
        "projects/Panoptic-DeepLab/panoptic_deeplab/dataset_mapper.py",
        "import torch\nfrom panopticapi.utils import rgb2id\n",
        "import torch\n",
        "panopticapi is on no package index: import it on use",
    ),
    Edit(
        "projects/Panoptic-DeepLab/panoptic_deeplab/dataset_mapper.py",
        "        targets = self.panoptic_target_generator(rgb2id(",
        "        from panopticapi.utils import rgb2id\n\n"
        "        targets = self.panoptic_target_generator(rgb2id(",
        "panopticapi is on no package index: import it on use",
    ),
    # -- numpy 1.24 and newer -------------------------------------------------------------------
    Edit("detectron2/data/build.py", "dtype=np.int)\n", "dtype=int)\n", NUMPY_ALIAS),
    Edit("detectron2/data/build.py", "dtype=np.int\n", "dtype=int\n", NUMPY_ALIAS),
    Edit("detectron2/data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", NUMPY_ALIAS),
    Edit(
        "detectron2/evaluation/pascal_voc_evaluation.py",
        ".astype(np.bool)",
        ".astype(bool)",
        NUMPY_ALIAS,
        count=2,
    ),
    Edit(
        "detectron2/evaluation/sem_seg_evaluation.py",
        "dtype=np.int)",
        "dtype=int)",
        NUMPY_ALIAS,
        count=2,
    ),
    Edit(
        "detectron2/evaluation/sem_seg_evaluation.py",
        "dtype=np.float)",
        "dtype=float)",
        NUMPY_ALIAS,
        count=2,
    ),
    Edit(
        "detectron2/evaluation/sem_seg_evaluation.py",
        ".astype(np.float)",
        ".astype(float)",
        NUMPY_ALIAS,
        count=3,
    ),
    Edit(
        "detectron2/structures/masks.py",
        ".astype(np.bool)",
        ".astype(bool)",
        NUMPY_ALIAS,
        count=2,
    ),
    Edit("detectron2/structures/masks.py", "dtype=np.bool)", "dtype=bool)", NUMPY_ALIAS),
    Edit(
        "detectron2/utils/visualizer.py",
        ".astype(np.bool)",
        ".astype(bool)",
        NUMPY_ALIAS,
        count=3,
    ),
    Edit("detectron2/utils/video_visualizer.py", "dtype=np.bool)", "dtype=bool)", NUMPY_ALIAS),
    # -- Pillow 10, setuptools 82, Python 3.11 --------------------------------------------------
    Edit(
        "detectron2/data/transforms/transform.py",
        "interp=Image.LINEAR",
        "interp=Image.BILINEAR",
        "Pillow 10 removed the older name of BILINEAR",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        "setuptools 82 removed pkg_resources",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        "os.path.join(\n"
        '        os.path.dirname(os.path.abspath(__file__)), "configs", config_path\n'
        "    )",
        "setuptools 82 removed pkg_resources",
    ),
    Edit(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(sorted(self._fallback_candidates), k=1)",
        "Python 3.11 samples sequences only: a mapper that returned None ended the training",
    ),
    # -- torch 2 --------------------------------------------------------------------------------
    Edit(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # Caffe2 is no longer part of torch\n"
        "    pass\n",
        "torch 2 has no caffe2, and exporting to TorchScript must not depend on it",
    ),
    Edit(
        "detectron2/engine/hooks.py",
        "isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler)",
        "isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler)",
        "torch 2's own schedulers are LRScheduler, so their state was neither saved nor restored",
        count=2,
    ),
)


# -- what is there already ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Found:
    """What importing `detectron2` gives in this interpreter."""

    version: str
    folder: str
    problem: str = ""  # why its parts cannot be imported; empty when they can

    @property
    def new_enough(self) -> bool:
        """Whether the version is at least the one that d2_cityscapes supports."""
        return tuple(int(n) for n in re.findall(r"\d+", self.version)[:2]) >= MINIMUM_VERSION


_PROBE = """\
import sys
try:
    import detectron2
    version, folder = detectron2.__version__, detectron2.__path__[0]
except (ImportError, AttributeError):
    sys.exit(0)
problem = ""
try:
    import detectron2.engine, detectron2.modeling
except Exception as error:
    problem = " ".join(f"{type(error).__name__}: {error}".split())
print("found", version, folder, problem, sep="\\t")
"""


def find_detectron2() -> Found | None:
    """Import Detectron2 as a user's program would, and say what was found.

    A fresh interpreter in an empty folder does it, so that a `detectron2` folder in the current
    directory is not taken for an installation, while PYTHONPATH still counts.
    """
    with tempfile.TemporaryDirectory() as empty:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE], cwd=empty, capture_output=True, text=True
        )
    for line in probe.stdout.splitlines():
        if line.startswith("found\t"):
            _, version, folder, problem = line.split("\t", 3)
            return Found(version, folder, problem)
    return None


def _has_module(name: str) -> bool:
    """Whether the module can be imported from anywhere but the current directory."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=empty, capture_output=True).returncode == 0


# -- download -----------------------------------------------------------------------------------


def _pip(arguments: Sequence[str], build_tools: Path | None = None) -> tuple[int, str]:
    """Run pip with this interpreter; returns the exit code and everything that it printed.

    Args:
        arguments: what follows `pip` on the command line.
        build_tools: a folder whose packages win over the installed ones.
    """
    environment = dict(os.environ)
    if build_tools is not None:
        paths = [str(build_tools), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    result = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )
    return result.returncode, result.stdout


def _explain(output: str, doing: str) -> InstallError:
    """Turn pip's output into one line."""
    if "DO NOT MATCH THE HASHES" in output:
        return InstallError(f"{doing}: the downloaded file has another SHA-256 than expected")
    if re.search(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|"
        r"Failed to establish|name resolution|timed out|Max retries exceeded|Connection refused",
        output,
    ):
        return InstallError(f"{doing}: cannot reach the package index; is there a network?")
    if PIP_REFUSES_URLS in output:
        return InstallError(
            f"{doing}: this pip is too new for it (it refuses a URL in an optional extra); run "
            f"`{sys.executable} -m pip install pip=={WORKING_PIP}`, then this again"
        )
    if "No module named pip" in output:
        return InstallError(f"{doing}: this Python has no pip; run `{sys.executable} -m ensurepip`")
    # A failed setup.py says more than pip's own summary below it, which names only the phase.
    for pattern, which in (
        (r"^\s*(\w*(?:Error|Exception): .+)$", -1),
        (r"^\s*ERROR: (.+)$", 0),
        (r"^\s*error: (?!subprocess-exited|metadata-generation)(.+)$", -1),
        (r"^(.+)$", -1),
    ):
        lines = re.findall(pattern, output, re.MULTILINE)
        if lines:
            return InstallError(f"{doing}: {lines[which].strip()}")
    return InstallError(f"{doing}: pip failed without a word")


def _fetch_build_tools(folder: Path) -> Path | None:
    """Put a setuptools that can describe the archive into `folder` where the installed one cannot.

    pip reads an archive's metadata even to download it. Without build isolation (the archive's
    setup.py imports torch) that takes setuptools 70.1, or an older one and the package wheel; a
    fresh virtual environment of Python 3.11 has neither, one of Python 3.12 no setuptools at all.
    """
    complete = _has_module("setuptools.command.bdist_wheel")
    if complete or (_has_module("setuptools") and _has_module("wheel")):
        return None
    arguments = ["install", *PIP_OPTIONS, "--target", str(folder), "setuptools>=70.1"]
    code, output = _pip(arguments)
    if code:
        raise _explain(output, "cannot download setuptools")
    return folder


def download_sdist(folder: Path) -> Path:
    """Download the source archive into `folder`, check it, and return its path."""
    requirement = f"{SDIST_NAME}=={SDIST_VERSION}"
    doing = f"cannot download {requirement}"
    tools = _fetch_build_tools(folder / "build_tools")
    # with the hash in hand, pip compares it before it runs anything of the archive
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{SDIST_SHA256}\n")
    arguments = ["download", *PIP_OPTIONS, "--no-deps", "--require-hashes", "--dest", str(folder)]
    arguments += ["--no-build-isolation", "--no-binary", ":all:", "--requirement", str(pinned)]
    code, output = _pip(arguments, tools)
    if code:
        raise _explain(output, doing)
    archives = sorted(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise InstallError(f"{doing}: expected one .tar.gz from pip, found {len(archives)}")
    check_sha256(archives[0], SDIST_SHA256)
    return archives[0]


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose content is not the one that the edits were written for."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path.name}: SHA-256 is {actual}, expected {expected}; nothing was installed"
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the archive below `folder`; returns its single top folder.

    Only plain files and folders that stay below `folder` are accepted.
    """
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            parts = PurePosixPath(member.name)
            inside = not parts.is_absolute() and ".." not in parts.parts
            if not (inside and (member.isfile() or member.isdir())):
                raise InstallError(f"{archive.name}: refusing to unpack {member.name!r}")
        tops = {PurePosixPath(member.name).parts[0] for member in members}
        if len(tops) != 1:
            raise InstallError(f"{archive.name}: expected one top folder, found {sorted(tops)}")
        for member in members:
            target = folder / member.name
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                target.write_bytes(source.read())
    return folder / tops.pop()


# -- edit and build -----------------------------------------------------------------------------


def apply_edits(root: Path, edits: Iterable[Edit] = EDITS) -> list[str]:
    """Apply the edits to the tree at `root`; returns the edited paths.

    An edit that does not find its text exactly as often as it says means that the tree is not
    the one it was written for, and ends the installation.
    """
    touched: dict[str, None] = {}
    for edit in edits:
        path = root / edit.path
        if not path.is_file():
            raise InstallError(f"edit of {edit.path}: there is no such file")
        text = path.read_text(encoding="utf-8")
        found = text.count(edit.old)
        if found != edit.count:
            raise InstallError(
                f"edit of {edit.path} ({edit.reason}): expected {edit.count} times "
                f"{edit.old!r}, found {found}"
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
        touched[edit.path] = None
    return list(touched)


def add_files(root: Path, files: Iterable[AddedFile] = ADDED_FILES) -> None:
    """Write the files that the archive does not have; one that exists ends the installation."""
    for added in files:
        path = root / added.path
        if path.exists():
            raise InstallError(f"added file {added.path} ({added.reason}): it exists already")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(added.text, encoding="utf-8")


def _notice(edits: Iterable[Edit], files: Iterable[AddedFile]) -> str:
    """The list of changes that travels inside the wheel, as the Apache licence asks."""
    lines = [
        "Detectron2 0.6 with compatibility edits for current Python, numpy, Pillow, torch and",
        "setuptools, made by tools/install_detectron2.py of d2_cityscapes. Changed files:",
        "",
    ]
    lines += [f"{edit.path}: {edit.reason}" for edit in edits]
    lines += [f"{added.path} (new): {added.reason}" for added in files]
    return "\n".join(dict.fromkeys(lines)) + "\n"


def _metadata(readme: str) -> str:
    """The wheel's METADATA."""
    headers = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {SDIST_VERSION}",
        "Summary: Detectron2 0.6 without compiled operators, edited to run on current libraries",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join(headers) + "\n\n" + readme


def build_wheel(root: Path, folder: Path) -> Path:
    """Pack the edited tree at `root` as `detectron2-0.6-py3-none-any.whl` in `folder`.

    Written by hand rather than with v0.6's setup.py, which imports torch, compiles C++ and carries
    the pins; the same tree always gives the same bytes.
    """
    contents: dict[str, bytes] = {}
    for source, target in [
        ("detectron2", "detectron2"),
        *((folder_, f"detectron2/projects/{name}") for name, folder_ in PROJECTS.items()),
    ]:
        if not (root / source / "__init__.py").is_file():
            raise InstallError(f"the archive has no package {source}")
        for path in sorted((root / source).rglob("*")):
            if path.is_file() and path.suffix in (".py", ".yaml"):
                contents[f"{target}/{path.relative_to(root / source).as_posix()}"] = (
                    path.read_bytes()
                )
    if not any(name.startswith("detectron2/model_zoo/configs/") for name in contents):
        raise InstallError("the archive has no detectron2/model_zoo/configs")

    info = f"detectron2-{SDIST_VERSION}.dist-info"
    contents[f"{info}/LICENSE"] = (root / "LICENSE").read_bytes()
    contents[f"{info}/COMPATIBILITY_EDITS.txt"] = _notice(EDITS, ADDED_FILES).encode()
    readme = (root / "README.md").read_text(encoding="utf-8")
    contents[f"{info}/METADATA"] = _metadata(readme).encode()
    contents[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: d2_cityscapes\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    contents[f"{info}/top_level.txt"] = b"detectron2\n"
    rows = []
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}\n")
    rows.append(f"{info}/RECORD,,\n")
    contents[f"{info}/RECORD"] = "".join(rows).encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"detectron2-{SDIST_VERSION}-py3-none-any.whl"
    partial = wheel.with_suffix(".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                entry = zipfile.ZipInfo(name, date_time=(2021, 11, 15, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)
        os.replace(partial, wheel)
    finally:
        partial.unlink(missing_ok=True)
    return wheel


# -- the command --------------------------------------------------------------------------------


def install(wheel: Path, constraint: Path | None, *, force: bool) -> None:
    """Install the wheel and what it needs with pip, which leaves everything as it was on failure.

    With `force` the wheel goes in once more on its own, since pip takes an installed Detectron2 of
    the same version for this one; the dependencies are not reinstalled.
    """
    arguments = ["install", *PIP_OPTIONS]
    if constraint is not None:
        arguments += ["--constraint", str(constraint)]
    passes: list[list[str]] = [[]] + ([["--force-reinstall", "--no-deps"]] if force else [])
    for extra in passes:
        code, output = _pip([*arguments, *extra, str(wheel)])
        if code:
            raise _explain(output, "cannot install detectron2")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    constraints = Path(__file__).resolve().parent.parent / "constraints.txt"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a Detectron2 that is importable already"
    )
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="keep the wheel in DIR")
    parser.add_argument(
        "--no-install", action="store_true", help="only build the wheel; needs --wheel-dir"
    )
    parser.add_argument(
        "--constraint",
        type=Path,
        metavar="FILE",
        default=constraints if constraints.is_file() else None,
        help="constraints file for pip (default: constraints.txt of this checkout)",
    )
    options = parser.parse_args(arguments)
    if options.no_install and options.wheel_dir is None:
        parser.error("--no-install needs --wheel-dir")
    return options


def run(options: argparse.Namespace) -> str:
    """Do what the options ask; returns the line to print."""
    if not options.no_install and not options.force:
        found = find_detectron2()
        if found is not None and found.new_enough:
            if found.problem:
                raise InstallError(
                    f"detectron2 {found.version} in {found.folder} is installed but broken "
                    f"({found.problem}); --force replaces it"
                )
            return f"detectron2 {found.version} in {found.folder} is left alone"
    if options.constraint is not None and not options.constraint.is_file():
        raise InstallError(f"{options.constraint}: there is no such constraints file")
    for module in ("torch", "torchvision"):
        if not _has_module(module):
            raise InstallError(
                f"{module} must be installed before detectron2: run "
                f"`{sys.executable} -m pip install torch torchvision`"
            )
    with tempfile.TemporaryDirectory(prefix="install_detectron2_") as temporary:
        work = Path(temporary)
        for folder in ("download", "source", "wheel"):
            (work / folder).mkdir()
        print(f"downloading {SDIST_NAME}=={SDIST_VERSION}")
        root = unpack(download_sdist(work / "download"), work / "source")
        edited = apply_edits(root)
        add_files(root)
        print(f"applied {len(EDITS)} compatibility edits to {len(edited)} files")
        wheel = build_wheel(root, options.wheel_dir or work / "wheel")
        if options.no_install:
            return f"built {wheel}"
        print(f"installing {wheel.name} and what it needs")
        install(wheel, options.constraint, force=options.force)
    found = find_detectron2()
    if found is None or found.problem:
        reason = found.problem if found else "it cannot be imported"
        raise InstallError(f"detectron2 was installed but does not work: {reason}")
    return f"installed detectron2 {found.version} in {found.folder}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        print(run(_parse(arguments)))
    except (InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
