"""The commands toka, toka-ping and toka-download: argument handling only."""
