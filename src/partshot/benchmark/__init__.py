"""What `partshot bench` is made of: datasets, methods, tables, and the protocols that published comparisons use."""
