"""Augment passages: recipe, fusion, and the pipeline from corpus to collection."""
