"""The version of the atomhub that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("atomhub")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "unknown"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of atomhub and of some installed packages, by name."""
    return {"atomhub": __version__} | {package: version(package) for package in packages}
