"""Distilled sets on disk: the format, the store of this machine, and the cards."""
