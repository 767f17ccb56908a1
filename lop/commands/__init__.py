"""The commands of `lop`, one a module. They import what they need when they run, so that `lop --help` is quick."""
