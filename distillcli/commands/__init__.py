"""One file per verb, each with ``run``; the table is in :mod:`distillcli.cli`."""
