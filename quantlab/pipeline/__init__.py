"""The jobs: each joins the parts into what one command does."""
