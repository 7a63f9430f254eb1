"""What is measured, and trained, on a GPU: one folder, one command. See README.md beside this file."""
