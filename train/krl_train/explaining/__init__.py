"""What a network looks at and learned: maps, neighbors, and its layers beside those of its teacher."""
