"""What protocols are made of: places and runs, numbers and tables, figures. None of these files is a protocol."""
