# `resnet-cifar serve` on a CPU: docs/deployment.md, "Containers".
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# Builds of torch without CUDA, a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY resnet_cifar/__init__.py resnet_cifar/
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" \
        --constraint constraints.txt --editable '.[serve,onnx]'
COPY resnet_cifar resnet_cifar

ENV PATH=/opt/venv/bin:$PATH HOME=/tmp
USER 1000
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["resnet-cifar", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
