"""How it is computed: layers, optimizers, devices, processes, and the files behind
them. Imports parameters and errors only."""
