"""torch.ops.onevision: the kernels of `cuda/`, with what PyTorch must know to trace and differentiate them.

    build       compile the library, or the kernels' source for the CPU
    library     load it; shapes for tracing, gradients
    assemble    ragged samples into packs
    patches     decoded images into patches
    rotary      rotary embedding of q and k
    scatter     image features into the embedded sequence
    check       `make cuda-check`

On a CPU the ops are computed by their twins, plain C++.
"""
