"""Shapes of networks; how they are trained or read stands in higher storeys."""
