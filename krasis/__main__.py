"""python -m krasis."""

from krasis.cli import main

main()
