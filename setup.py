"""Packaging of d2_cityscapes. Imports nothing but setuptools, so that any pip can read it."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

_PACKAGE = (Path(__file__).parent / "d2_cityscapes" / "__init__.py").read_text(encoding="utf-8")
_VERSION = re.search(r'^__version__ = "(.+)"$', _PACKAGE, re.MULTILINE)

_PNG = ["imagecodecs>=2025.3.30"]
_JPEG2000 = ['imagecodecs>=2026.1.14; python_version >= "3.11"']  # no older one has HTJ2K
_POSTGRESQL = ["psycopg2-binary>=2.9"]
_TIMM = ["timm>=1.0.20"]
_TRANSFORMERS = ["transformers>=5.24"]
_ONNX = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5.4"]
_OPENVINO = ["openvino>=2025.4"]
_VIDEO = ["av>=15"]
_SUPERVISION = ["supervision>=0.27"]
_HUB = ["huggingface_hub>=1"]
# what stock Detectron2 needs to read the PNG tree, and a gauge of memory
_BENCHMARK = ["opencv-python-headless>=4.8", "psutil>=5.9", "shapely>=2.0"]

_DOCS = [
    line
    for line in Path("docs/requirements.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]

# docs/install.md says with which of them what was run
_PYTHON_MINORS = range(10, 15)

# what of the checkout a wheel carries, see d2_cityscapes/shipped.py
_SHIPPED = ["configs", "constraints.txt", "tools/install_detectron2"]


class BuildWithShipped(build_py):
    """Copies it beside the modules, but for an editable installation."""

    def run(self) -> None:
        super().run()
        for path in () if self.editable_mode else _SHIPPED:
            target = Path(self.build_lib, "d2_cityscapes", "shipped", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                shutil.copytree(
                    path, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
                )
            else:
                shutil.copyfile(path, target)


setup(
    name="d2_cityscapes",
    version=_VERSION[1],
    description=(
        "Instance, semantic and panoptic segmentation of street scenes (Cityscapes) in Detectron2"
    ),
    license="Apache-2.0",
    author="The maintainers of d2_cityscapes",
    keywords=(
        "cityscapes detectron2 pytorch panoptic-segmentation instance-segmentation "
        "semantic-segmentation mask-rcnn deeplabv3 autonomous-driving"
    ),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in _PYTHON_MINORS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    project_urls={
        "Detectron2": "https://github.com/facebookresearch/detectron2",
        "Cityscapes": "https://www.cityscapes-dataset.com",
    },
    python_requires=f">=3.{min(_PYTHON_MINORS)}",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["d2_cityscapes", "d2_cityscapes.*"]),
    py_modules=["d2c"],
    entry_points={"console_scripts": ["d2c = d2c:main"]},
    cmdclass={"build_py": BuildWithShipped},
    package_data={"d2_cityscapes": ["py.typed"]},
    # Detectron2 is not on PyPI under its own name: `d2c install-detectron2`, docs/install.md
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "pillow>=10",
        "pyyaml>=6",
        "fvcore>=0.1.5",
        "safetensors>=0.8",  # reads without a memory map
        "zstandard>=0.22",
        "cityscapesscripts>=2.2",  # imported for its own numbers only: d2c benchmark evaluation
        "pycocotools>=2.0.7",
        "scikit-learn>=1.3",
        "matplotlib>=3.7",
        "tqdm>=4.60",
        "optuna>=5",  # until then its PED-ANOVA warns that it is experimental
        "scipy>=1.10",
        "argcomplete>=3.1",  # TAB behind d2c
    ],
    extras_require={
        "png": _PNG,  # PNGs read in two thirds of the time
        "jpeg2000": _JPEG2000,  # to write and read shards with --image-codec jpeg2000-ht
        "postgresql": _POSTGRESQL,  # tools/search.py --storage postgresql://
        "timm": _TIMM,  # MODEL.BACKBONE.NAME "build_timm_fpn_backbone"
        "transformers": _TRANSFORMERS,  # MODEL.META_ARCHITECTURE "UniversalSegmentor"
        "onnx": _ONNX,  # export to ONNX
        "openvino": _OPENVINO,  # export to OpenVINO
        "video": _VIDEO,  # d2c predict of video files and cameras
        "supervision": _SUPERVISION,  # predictions as supervision.Detections
        "hub": _HUB,  # exported folders on the Hugging Face Hub
        "benchmark": _BENCHMARK,  # tools/benchmark.py
        "docs": _DOCS,  # make docs
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "ruff>=0.5",
            "mypy>=1.10",
            "import-linter>=2.1",
            "nbclient>=0.10",  # runs notebooks/
            "nbformat>=5.9",
            "ipykernel>=6.29",
            *_PNG,
            *_JPEG2000,
            *_BENCHMARK,
            *_DOCS,
            *_POSTGRESQL,
            *_TIMM,
            *_TRANSFORMERS,
            *_ONNX,
            *_OPENVINO,
            *_VIDEO,
            *_SUPERVISION,
            *_HUB,
        ],
    },
)
