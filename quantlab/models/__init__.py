"""Models: checkpoint kinds, what is a weight in them, and how to run them."""
