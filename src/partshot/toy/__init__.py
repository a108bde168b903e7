"""Procedurally drawn images with pixel-exact masks: faces, cars and horses."""
