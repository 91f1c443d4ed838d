"""What a run costs, before it runs: README.md beside this file is the map. Imports no torch."""
