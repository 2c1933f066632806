# The image of crossdock. One lock pins everything by hash: every file of requirements.lock is fetched
# and checked, then only what crossdock runs with is installed, without an index.
#
#   docker build --tag crossdock:v0.1.0 .
#
# PYTHON_IMAGE must have Python 3.11 or newer with venv; give it with a digest for a reproducible image.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/crossdock && mkdir -p /cache/xpkg
COPY requirements.lock ./
RUN /build/bin/pip download --require-hashes --no-deps --only-binary :all: \
        --requirement requirements.lock --dest /wheels
RUN /build/bin/pip install --no-index --find-links /wheels hatchling
COPY pyproject.toml README.md LICENSE ./
COPY controller controller
COPY manifests manifests
RUN /build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
    && /build/bin/pip --python /opt/crossdock/bin/python \
        install --no-index --find-links /wheels /dist/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="crossdock" \
      org.opencontainers.image.description="A package manager for Crossplane clusters" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/crossdock /opt/crossdock
# The default of --cache-dir; the chart mounts a volume here.
COPY --from=build --chown=65532:65532 /cache /cache
ENV PATH=/opt/crossdock/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
EXPOSE 8080 8081
ENTRYPOINT ["/opt/crossdock/bin/crossdock"]
