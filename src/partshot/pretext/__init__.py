"""How representations are trained, one training game per file."""
