"""LAION parts from elsewhere: addresses, resumed and checked downloads, `clipql download`."""
