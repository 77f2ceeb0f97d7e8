"""One file per verb, each with ``run``; the table of them is in :mod:`distillcli.commands.table`."""
