"""What all other rooms use: checks of arguments, token ids, and files that are written whole or not at all."""
