"""Tables as older programs had them: what `schema.create_or_upgrade` has to understand."""

from typing import Any

from sqlalchemy import Engine, Text, select, text, type_coerce, update

from nbtl_search.ledger import schema
from nbtl_search.study.finals import Plan

_BACK = {
    8: ("DROP TABLE nbtl_ablation",),
    7: (
        "ALTER TABLE nbtl_trial DROP COLUMN repeat_of",
        "ALTER TABLE nbtl_trial DROP COLUMN audited",
        "ALTER TABLE nbtl_study DROP COLUMN n_first",
    ),
    6: (
        "ALTER TABLE nbtl_study DROP COLUMN closed",
        "ALTER TABLE nbtl_trial DROP COLUMN granted",
        "ALTER TABLE nbtl_attempt DROP COLUMN n_repeated",
    ),
    5: (
        "ALTER TABLE nbtl_final DROP COLUMN averaged",
        "ALTER TABLE nbtl_final_run DROP COLUMN averaged",
    ),
    4: (
        "ALTER TABLE nbtl_notification RENAME TO nbtl_notice",
        "ALTER INDEX nbtl_notification_pkey RENAME TO nbtl_notice_pkey",
        (
            "ALTER TABLE nbtl_notice RENAME CONSTRAINT nbtl_notification_study_id_fkey"
            " TO nbtl_notice_study_id_fkey"
        ),
        "ALTER TABLE nbtl_trial RENAME COLUMN notified TO told",
        "ALTER TABLE nbtl_trial ALTER COLUMN recipe TYPE text USING recipe::text",
        "ALTER TABLE nbtl_final_run ALTER COLUMN recipe TYPE text USING recipe::text",
        "ALTER TABLE nbtl_final ALTER COLUMN plan TYPE text USING plan::text",
    ),
    3: (
        "DROP TABLE nbtl_job, nbtl_notice",
        "ALTER TABLE nbtl_trial DROP COLUMN n_lost",
    ),
    2: ("DROP TABLE nbtl_diagnosis",),
}


def as_version(engine: Engine, version: int) -> None:
    """Turn this program's tables into those of an older one, with the texts it wrote."""
    with engine.begin() as connection:
        written: list[tuple[Any, Any, str]] = [
            (column, key, row.recipe.model_dump_json())
            for column in (schema.trial.c.recipe, schema.final_run.c.recipe)
            for row in connection.execute(select(column.table))
            for key in ([own == getattr(row, own.name) for own in column.table.primary_key],)
        ]
        written += [
            (
                schema.final.c.plan,
                [schema.final.c.parent_id == row.parent_id, schema.final.c.round == row.round],
                # The fields of then.
                Plan.parse(row.plan).model_dump_json(exclude={"averages"} if version < 5 else None),
            )
            for row in connection.execute(select(schema.final))
        ]
        for newer in range(schema.VERSION, version, -1):
            for statement in _BACK[newer]:
                connection.execute(text(statement))
        for column, where, value in written:
            change = update(column.table).where(*where)
            connection.execute(change.values({column: type_coerce(value, Text)}))
        connection.execute(text("DELETE FROM nbtl_meta WHERE version > :v"), {"v": version})
        connection.execute(text("INSERT INTO nbtl_meta VALUES (:v)"), {"v": version})
