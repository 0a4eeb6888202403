"""The programs: the only place that parses arguments, prints and exits."""
