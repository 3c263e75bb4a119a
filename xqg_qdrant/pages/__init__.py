"""Results folders → one offline HTML file with tables and charts.

`page` puts it together with the templates beside it; `evaluations`, `sweeps` and `changes` say what is shown of each
kind of folder; `charts` and `axes` have the geometry, `texts` what becomes of texts.
"""
