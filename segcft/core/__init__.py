"""What every room uses: recipes and checkpoints, whole files, processes, random states."""
