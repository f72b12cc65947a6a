# cir-cot with its commands in a container. For CPUs:
#   docker build -t cir-cot .
# For NVIDIA GPUs (the host needs the NVIDIA Container Toolkit; run with --gpus all):
#   docker build -t cir-cot --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.12-slim

# Where torch comes from, and the extras that are installed.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=demo,heic,qdrant

WORKDIR /src
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY cir_cot cir_cot
COPY train train
COPY eval eval
COPY data_gen data_gen
RUN pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch torchvision \
    && pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

# Models, datasets and runs are mounted; the hub's cache outlives the container.
RUN useradd --create-home --uid 1000 cir && mkdir /cache /data && chown cir /cache /data
USER cir
ENV HF_HOME=/cache
VOLUME ["/cache"]
WORKDIR /data
ENTRYPOINT ["cir-cot"]
CMD ["--help"]
