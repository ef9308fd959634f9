"""What configuration files share: loading them, their variants, and what is computed for them."""
