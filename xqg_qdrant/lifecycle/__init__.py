"""Look after a collection: status, copies, updates, new recipes."""
