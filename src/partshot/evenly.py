"""evenly: some of many, spread over all of them."""

from collections.abc import Sequence

import numpy as np


def evenly(items: Sequence | np.ndarray, most: int) -> list | np.ndarray:
    """At most `most` items in their order, evenly spaced from the first one on; all where there are no more.

    Of an array, rows: an array again.
    """
    count = min(len(items), most)
    places = [i * len(items) // count for i in range(count)]
    return items[places] if isinstance(items, np.ndarray) else [items[i] for i in places]
