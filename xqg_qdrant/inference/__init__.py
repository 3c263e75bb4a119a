"""Run models: ONNX Runtime sessions, tokenizers, encoders and decoders."""
