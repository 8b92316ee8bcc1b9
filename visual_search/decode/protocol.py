"""What a decoder process and its parent say to each other.

A request is `HEADER` and the body, the answer one line of JSON. JSON, because nothing that the
child says may run code in its parent. A picture that takes much memory is not decoded at once: the
answer then only says how much, and the real one follows after `GO`.
"""

import struct

# The size of the body, and how short a side of the picture may get (0: decode it whole).
HEADER = struct.Struct(">QI")
GO = b"!"
"""The memory a large picture needs is there."""
