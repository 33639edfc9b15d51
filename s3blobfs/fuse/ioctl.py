"""Commands of ioctl(2) that are this filesystem's own, by the numbers of <linux/ioctl.h>."""

from __future__ import annotations

from typing import Final

_TYPE: Final = 0xB3

SYNC: Final = _TYPE << 8 | 1
"""``_IO(0xB3, 1)``, of a file: return when it is in S3 as it is now, whatever the durability, as
``s3blobfs sync FILE`` does. Of a directory: when everything is."""
