"""Distilled sets as files: format v1, cards, the local store."""
