"""The filesystem's operations, called directly."""
