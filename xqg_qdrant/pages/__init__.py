"""Render HTML: the offline report of results folders, and the search page with its server."""
