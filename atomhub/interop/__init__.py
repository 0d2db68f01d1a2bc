"""Distilled sets in the files of other projects and tools."""
