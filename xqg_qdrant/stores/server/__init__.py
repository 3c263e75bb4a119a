"""Stores behind qdrant-client: a server, a cluster, or the client's local mode."""
