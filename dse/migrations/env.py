"""Alembic's entry: migrate on the connection that `dse.schema.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from dse.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,  # `alembic_version` is Optuna's
    transaction_per_migration=False,
)
context.run_migrations()
