"""Many recipes measured over one collection, without ingesting any of them."""
