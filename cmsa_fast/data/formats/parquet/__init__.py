"""Reader of Parquet tables of referring expressions."""
