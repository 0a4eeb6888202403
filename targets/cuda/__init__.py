"""What the gpu backend is made of: kernels, lowering, compiling, running."""
