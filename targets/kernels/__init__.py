"""TensorIR generators: each kernel is a frozen description that writes one PrimFunc."""
