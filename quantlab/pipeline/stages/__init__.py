"""`quantlab run`: stages keyed by what goes into them, in a folder that remembers what is done."""
