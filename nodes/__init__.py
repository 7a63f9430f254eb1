"""The nodes of the pack, one a file: sockets in, one call, sockets out."""
