"""Run folders: what every train, pack, eval and run leaves, and what can be said about many of them."""
