"""The lab checked and measured: its own tests, mutants, benchmarks, doctor."""
