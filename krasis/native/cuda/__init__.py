"""Operations on the GPU; on tensors in main memory, the same kernels on an emulated one, for tests."""
