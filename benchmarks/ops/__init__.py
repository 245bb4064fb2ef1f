"""The ops of `cuda/` on a GPU: the bytes that each must move, and how near it comes to the bandwidth of the device.

    timing      time of calls on the GPU, bandwidth of a copy, rows of results
    images      decoded images into patches, beside the CPU path
    tokens      assembly, scatter and rotary embedding, beside PyTorch
"""
