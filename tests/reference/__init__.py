"""The method as plain, slow code. The product's fast code is compared with it."""
