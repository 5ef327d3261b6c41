"""Nav2's costmap layers on the node's outputs, without Nav2: what a parameter file marks, against the truth."""
