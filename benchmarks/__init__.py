"""Speed, memory and parity, measured; results are kept in results/."""
