"""`dino-perception <command>`: one command, one file."""
