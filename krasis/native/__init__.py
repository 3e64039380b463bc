"""The compiled libraries, behind ctypes. Nothing else in krasis loads them."""
