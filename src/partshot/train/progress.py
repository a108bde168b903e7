"""The former place of `partshot.progress`."""

from partshot.progress import Ticker, print_status

__all__ = ["Ticker", "print_status"]
