"""Every parallel layout against one process, and going on from one layout in another: `make parallel-check`."""
