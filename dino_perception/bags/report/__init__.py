"""What a replay leaves for people: one page, charts, pictures, a video."""
