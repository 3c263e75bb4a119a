"""How good a search is: files of judgements and results, measures, significance, reports."""
