# One image for `homing serve` and for the simulated engines of the compose stack.
FROM python:3.12-slim
WORKDIR /homing
COPY pyproject.toml README.md LICENSE ./
COPY extproc extproc
COPY proto_gen proto_gen
RUN pip install --no-cache-dir '.[otel,etcd]'
USER nobody
ENTRYPOINT ["homing"]
