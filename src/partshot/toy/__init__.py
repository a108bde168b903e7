"""Drawn images with exact masks: faces, cars and horses."""
