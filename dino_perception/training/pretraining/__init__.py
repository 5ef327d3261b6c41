"""How the bundled backbone is trained on rendered drives."""
