"""How representations are read, one way per file: pictures in, Pyramid out."""
