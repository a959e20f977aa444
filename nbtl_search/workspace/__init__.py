"""The verbs of the program, on a home folder and a database."""
