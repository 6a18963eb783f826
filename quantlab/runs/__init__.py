"""Recorded runs: the folder that each train, pack, eval and run leaves, and what follows from many of them."""
