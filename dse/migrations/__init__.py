"""Alembic scripts that make and change the `dse_*` tables; run by `dse.schema.upgrade`."""
