"""``python -m lab.cli``: what ``./xenlab`` runs."""

from lab.cli.main import main

main()
