# aclserve on a slim Python image, for the emulated device. For a card, build on a CANN image with Python 3.11 or newer:
#   docker build --build-arg BASE_IMAGE=ascendai/cann:8.5.0-910b-ubuntu22.04-py3.11 --tag aclserve-npu .
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}

# The group that owns the driver's device nodes on the host: `stat --format %g /dev/davinci_manager`.
ARG DRIVER_GID=1000
USER root
RUN getent group ${DRIVER_GID} || groupadd --gid ${DRIVER_GID} HwHiAiUser
RUN useradd --create-home --gid ${DRIVER_GID} --shell /usr/sbin/nologin aclserve

WORKDIR /opt/aclserve
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY service service
COPY client/aclserve_client client/aclserve_client
RUN python3 -m pip install --no-cache-dir '.[server,cli]'

USER aclserve
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8002/readyz', timeout=2)"]
ENTRYPOINT ["aclserve"]
CMD ["serve", "--host", "0.0.0.0", "--insecure", "--model-repository", "/models"]
