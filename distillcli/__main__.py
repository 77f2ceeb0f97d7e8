"""`python -m distillcli` is `distill`."""

from distillcli.cli import main

if __name__ == "__main__":
    main()
