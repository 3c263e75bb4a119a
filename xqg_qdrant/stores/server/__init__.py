"""A Qdrant server, or what qdrant-client opens in its place."""
