"""Files: every container a recording comes in, read and written as one ordered stream of messages."""
