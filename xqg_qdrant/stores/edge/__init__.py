"""Collections in a local directory, held by Qdrant's embedded engine."""
