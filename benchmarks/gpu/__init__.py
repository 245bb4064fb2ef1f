"""`make gpu-check`: what the suite is worth on the GPU at hand. Each section runs apart and leaves its findings."""
