"""The package's version, read once and late: reading metadata costs milliseconds."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("asyncfetch")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
