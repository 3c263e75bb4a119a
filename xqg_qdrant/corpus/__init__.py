"""Read passages, questions and generated queries from files."""
