//! Where the statements of a batch run: on a transaction of sqlx, where each costs a round trip, or on the connection
//! of the thread that does nothing but commit batches. One text of SQL and Rust for both.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};
use sqlx::{QueryBuilder, Row};

use crate::db::{DbKind, Tx, on};
use crate::error::DbError;

/// Widths of the multi-row statements where each costs a round trip: few texts, so that each stays prepared.
const WIDTHS: [usize; 4] = [64, 16, 4, 1];

/// A value of a statement. An absent one has a type too; PostgreSQL asks for it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    /// A number.
    Int(Option<i64>),
    /// A text.
    Text(Option<&'a str>),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value<'_> {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<&'a String> for Value<'a> {
    fn from(value: &'a String) -> Self {
        Self::Text(Some(value))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self::Text(value)
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Int(Some(number)) => ValueRef::Integer(number),
            Self::Text(Some(text)) => ValueRef::Text(text.as_bytes()),
            Self::Int(None) | Self::Text(None) => ValueRef::Null,
        }))
    }
}

/// Values of different types, in the order of their numbers.
macro_rules! values {
    ($($value:expr),* $(,)?) => { [$($crate::lane::Value::from($value)),*] };
}

pub(crate) use values;

/// Binds values to a query of sqlx.
macro_rules! bound {
    ($query:expr, $values:expr) => {{
        let mut query = $query;
        for value in $values {
            query = match *value {
                Value::Int(number) => query.bind(number),
                Value::Text(text) => query.bind(text),
            };
        }
        query
    }};
}

/// The connection of the committing thread with its prepared statements, each found by where its text stands.
pub(crate) struct Own<'c> {
    connection: &'c rusqlite::Connection,
    statements: HashMap<(usize, usize), Prepared<'c>>,
}

struct Prepared<'c> {
    statement: rusqlite::Statement<'c>,
    /// Which value each parameter takes: SQLite counts `$n` by first appearance, not by its number.
    takes: Vec<usize>,
}

impl<'c> Own<'c> {
    pub(crate) fn new(connection: &'c rusqlite::Connection) -> Self {
        Self { connection, statements: HashMap::new() }
    }

    /// The statement with its values bound.
    fn bind(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<&mut rusqlite::Statement<'c>, DbError> {
        let place = (sql.as_ptr() as usize, sql.len());
        let prepared = match self.statements.entry(place) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                let statement = self.connection.prepare(sql)?;
                let taken = (1..=statement.parameter_count()).map(|at| {
                    let number = statement.parameter_name(at)?.strip_prefix('$')?.parse::<usize>().ok()?;
                    number.checked_sub(1).filter(|place| *place < values.len())
                });
                let takes = taken.collect::<Option<Vec<_>>>();
                let takes = takes.ok_or_else(|| DbError::impossible("parameters", sql))?;
                free.insert(Prepared { statement, takes })
            }
        };
        for (at, place) in prepared.takes.iter().enumerate() {
            prepared.statement.raw_bind_parameter(at + 1, values[*place])?;
        }
        Ok(&mut prepared.statement)
    }
}

/// Where statements run.
pub(crate) trait Lane {
    /// Of which database.
    fn kind(&self) -> DbKind;

    /// Runs a statement; gives the number of rows it touched.
    async fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, DbError>;

    /// The first row, which has numbers only.
    async fn row<const N: usize>(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Option<[Option<i64>; N]>, DbError>;

    /// Inserts rows with the statement for one of them, `INSERT INTO … VALUES ($1, …)`.
    async fn insert<const N: usize>(
        &mut self,
        sql: &'static str,
        rows: &[[Value<'_>; N]],
    ) -> Result<(), DbError>;
}

/// Nothing waits here.
impl Lane for Own<'_> {
    fn kind(&self) -> DbKind {
        DbKind::Sqlite
    }

    async fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, DbError> {
        Ok(self.bind(sql, values)?.raw_execute()? as u64)
    }

    async fn row<const N: usize>(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Option<[Option<i64>; N]>, DbError> {
        let mut rows = self.bind(sql, values)?.raw_query();
        let Some(row) = rows.next()? else { return Ok(None) };
        let mut numbers = [None; N];
        for (at, number) in numbers.iter_mut().enumerate() {
            *number = row.get(at)?;
        }
        Ok(Some(numbers))
    }

    async fn insert<const N: usize>(
        &mut self,
        sql: &'static str,
        rows: &[[Value<'_>; N]],
    ) -> Result<(), DbError> {
        for row in rows {
            self.bind(sql, row)?.raw_execute()?;
        }
        Ok(())
    }
}

/// Each statement costs a round trip, so inserts are wide.
impl Lane for Tx {
    fn kind(&self) -> DbKind {
        Self::kind(self)
    }

    async fn execute(&mut self, sql: &'static str, values: &[Value<'_>]) -> Result<u64, DbError> {
        Ok(on!(self, c => bound!(sqlx::query(sql), values).execute(c).await?.rows_affected()))
    }

    async fn row<const N: usize>(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Option<[Option<i64>; N]>, DbError> {
        on!(self, c => {
            let row = bound!(sqlx::query(sql), values).fetch_optional(c).await?;
            let Some(row) = row else { return Ok(None) };
            let mut numbers = [None; N];
            for (at, number) in numbers.iter_mut().enumerate() {
                *number = row.try_get(at)?;
            }
            Ok(Some(numbers))
        })
    }

    async fn insert<const N: usize>(
        &mut self,
        sql: &'static str,
        rows: &[[Value<'_>; N]],
    ) -> Result<(), DbError> {
        let (head, _) = sql.split_once("VALUES").unwrap_or((sql, ""));
        let mut rest = rows;
        for width in WIDTHS {
            while rest.len() >= width {
                let (now, later) = rest.split_at(width);
                rest = later;
                on!(&mut *self, c => {
                    let mut query = QueryBuilder::new(head);
                    query.push_values(now, |mut line, row| {
                        for value in row {
                            match *value {
                                Value::Int(number) => line.push_bind(number),
                                Value::Text(text) => line.push_bind(text),
                            };
                        }
                    });
                    query.build().execute(&mut *c).await?;
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parameters_take_the_value_of_their_number_wherever_they_stand() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let mut own = Own::new(&connection);
        for (sql, numbers) in [("SELECT $1 - $2, $1", [1, 3]), ("SELECT $2 - $1, $2", [-1, 2])] {
            let row = own.row::<2>(sql, &values![3, 2]).await.unwrap();
            assert_eq!(row, Some(numbers.map(Some)), "{sql}");
        }
        let unknown = own.row::<1>("SELECT $3", &values![1, 2]).await;
        assert!(matches!(unknown, Err(DbError::Impossible { .. })), "{unknown:?}");
        assert_eq!(own.row::<1>("SELECT 1 WHERE $1 = 'x'", &values!["y"]).await.unwrap(), None);
    }
}
