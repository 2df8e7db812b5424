# The commands, with Detectron2, in a container of a user without rights.
#
#     docker build -t d2_cityscapes .
#     docker run --rm -v "$PWD/demo_output:/work/demo_output" d2_cityscapes          # make demo
#
# With a GPU, whose driver and nvidia-container-toolkit are the host's:
#
#     docker build -t d2_cityscapes:cuda --build-arg TORCH_INDEX= .
#     docker run --rm --gpus all --shm-size 8g -v DIR:/work d2_cityscapes:cuda d2c train ...
FROM python:3.12-slim

# Where PyTorch comes from, beside PyPI; empty for PyPI alone, whose PyTorch brings CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Of the user; a folder that is mounted has to be writable for it.
ARG UID=1000

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid "$UID" user \
    && install -d -o user /opt/d2_cityscapes /work

USER $UID
WORKDIR /opt/d2_cityscapes
COPY --chown=$UID . .
RUN make install TORCH_INDEX="$TORCH_INDEX" VENV=/home/user/venv \
    && rm -rf /home/user/.cache

ENV PATH=/home/user/venv/bin:$PATH \
    DETECTRON2_DATASETS=/work/datasets
WORKDIR /work
CMD ["make", "-C", "/opt/d2_cityscapes", "VENV=/home/user/venv", "DEMO=/work/demo_output", "demo"]
