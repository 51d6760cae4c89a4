"""The method written straight down, slow and plain, to hold the product's fast code to its equations."""
