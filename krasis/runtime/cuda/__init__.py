"""The hybrid engine: hot experts on the GPU, cold ones over PCIe and on the CPU."""
