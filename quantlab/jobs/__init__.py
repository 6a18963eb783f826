"""One file a public verb: what a command and the Python call of that name do."""
