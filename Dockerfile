# prefcli on NVIDIA GPUs. The driver of the machine must support CUDA 13 (580 or newer).
#
#   docker build -t prefcli .
#   docker run --gpus all --ipc host -v "$PWD:/workspace" -v prefcli-cache:/cache prefcli dpo recipe.yaml
#
# torch brings CUDA's libraries, so the base image is the smallest one. Models, data and compiled kernels
# are cached in /cache; recipes, data and runs are in /workspace, the folder you mount. If it is not
# writable for user 1000, add --user "$(id -u):$(id -g)" and mount a folder of yours on /cache.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# gcc and Python's headers: triton compiles its launchers.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/prefcli \
    && install --directory --owner 1000 --group 1000 /workspace /cache

ENV PATH=/opt/prefcli/bin:$PATH \
    HOME=/cache \
    HF_HOME=/cache/huggingface

# torch is a layer of its own, which is built again only if its version changes.
COPY constraints.txt /src/
RUN pip install --no-cache-dir --constraint /src/constraints.txt torch

COPY pyproject.toml README.md LICENSE /src/
COPY recipes /src/recipes
COPY prefcli /src/prefcli
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[quant]"

USER 1000:1000
WORKDIR /workspace
VOLUME /cache
ENTRYPOINT ["prefcli"]
CMD ["--help"]
