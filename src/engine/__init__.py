"""How it is computed: layers, kernels, optimizers, ranks. Calls parameters and errors
only."""
