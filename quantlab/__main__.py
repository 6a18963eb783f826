"""`python -m quantlab` is the `quantlab` command."""

from quantlab.cli.main import main

if __name__ == "__main__":
    main()
