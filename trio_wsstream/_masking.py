"""The XOR mask of RFC 6455, section 5.3, in C where possible: Python is a hundred times slower."""

from __future__ import annotations

try:
    from websockets.speedups import apply_mask
except ImportError:  # websockets was installed without its compiled extension
    from websockets.utils import apply_mask

__all__ = ["apply_mask"]
