"""A page in a browser that shows what the node sees: for the first look, without RViz or Foxglove."""
