"""How representations are read, one way per file: images in, Pyramid out."""
