# Training, on GPUs with the NVIDIA Container Toolkit, or on CPUs: docs/deployment.md, "Containers".
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# torch.compile needs a C compiler. Versions are those of the base image's distribution.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# The packages before the code, so that a change of the code does not install them again.
WORKDIR /app
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY resnet_cifar/__init__.py resnet_cifar/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt --editable '.[trackers,tune,onnx]'
COPY . .

# Any user may write runs and caches: docker run --user "$(id -u)" gives files to the person who starts it.
RUN mkdir -p /cache runs && chmod 1777 /cache runs
ENV PATH=/opt/venv/bin:$PATH HOME=/cache HF_HOME=/cache/huggingface RESNET_CIFAR_CACHE=/cache/resnet_cifar
USER 1000
# Not `accelerate launch`: `docker stop` signals the first process only, and that launcher would die of it, with the run.
CMD ["containers/train.sh", "--recipe", "finetune", "--run", "runs/finetune"]
