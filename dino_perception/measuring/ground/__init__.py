"""Obstacles and the map of where one can drive, against terrain whose heights are known."""
