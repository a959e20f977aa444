"""The paper of Plested, Shen and Gedeon (2021): its tables, and studies of its recipes."""
