"""One theorem per file, one folder per chapter."""
