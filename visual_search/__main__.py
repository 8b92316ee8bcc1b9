"""`python -m visual_search` is `vsearch`."""

from visual_search.cli import main

main()
