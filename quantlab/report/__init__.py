"""Reports of packings and comparisons of packed models: JSON, tables for a terminal, and a page for a browser."""
