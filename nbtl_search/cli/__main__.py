"""`python -m nbtl_search.cli` is `nbtl-search`."""

from nbtl_search.cli import main

main()
