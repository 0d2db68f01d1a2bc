"""The ``atomhub`` command, installed as ``atomhub.cli``: a command parses, calls the API and prints."""
