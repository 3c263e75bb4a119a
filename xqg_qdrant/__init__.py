"""Make a Qdrant collection answer questions asked in languages its passages are not written in (xQG, SIGIR 2023)."""
