"""``python -m atomhub`` is the ``atomhub`` command."""

from atomhub.cli.main import main

if __name__ == "__main__":
    main()
