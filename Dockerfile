# A container that runs the demo on a CPU:
#
#     docker build -t quantlab .
#     docker run --rm -v "$PWD/work:/work" quantlab                     # the demo, into work/demo
#     docker run --rm -v "$PWD/work:/work" quantlab inspect demo/model.qlab
#
# torch from the usual index brings libraries for GPUs, which take gigabytes and are not used here. For a smaller image name an index
# with CPU builds: docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS -t quantlab .
FROM python:3.11.11-slim-bookworm

ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY quantlab quantlab
COPY calib calib
COPY kernels kernels
COPY trainer trainer
RUN PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" pip install -c constraints.txt '.[hf,html,plots]'

RUN useradd --create-home --uid 1000 quantlab && mkdir /work && chown quantlab /work
USER quantlab
WORKDIR /work
VOLUME /work
ENTRYPOINT ["quantlab"]
CMD ["demo", "--out", "demo"]
