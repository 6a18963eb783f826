"""The command line. Nothing below this package reads arguments or environment variables."""
