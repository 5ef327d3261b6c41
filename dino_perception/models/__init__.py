"""What is computed: frozen backbones and the heads on top of them, as plain torch modules."""
