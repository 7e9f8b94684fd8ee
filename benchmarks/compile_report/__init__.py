"""Evidence on the Triton kernels without a GPU: resources, instructions, launches and predicted times."""
