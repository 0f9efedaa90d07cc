"""The methods of `Model`, a module for each subject. `model.py` puts them into the class."""
