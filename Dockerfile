# Image of the compose profile `gpu`: the xqg command with ONNX Runtime's CUDA and cuDNN libraries from PyPI.
FROM python:3.12-slim

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[cuda,parquet]'
WORKDIR /data
ENTRYPOINT ["xqg"]
