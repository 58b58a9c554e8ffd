//! Confidence samples in a file.

use std::path::PathBuf;

use async_trait::async_trait;
use rusqlite::params;

use super::database::Database;
use crate::store::{ConfidenceStore, Result, Sample, SampleQuery, decode, encode};

const MIGRATIONS: &[&str] = &["
    CREATE TABLE IF NOT EXISTS samples (
        id TEXT PRIMARY KEY, tenant TEXT NOT NULL, agent TEXT NOT NULL, at_us INTEGER NOT NULL, sample TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS samples_by_agent ON samples (tenant, agent, at_us);
"];

/// The embedded [`ConfidenceStore`].
pub(in crate::store) struct Confidences {
    database: Database,
}

impl Confidences {
    pub(in crate::store) async fn open(file: Option<PathBuf>) -> Result<Self> {
        Ok(Self { database: Database::open(file, MIGRATIONS).await? })
    }
}

#[async_trait]
impl ConfidenceStore for Confidences {
    async fn append(&self, samples: &[Sample]) -> Result<()> {
        let samples = samples.to_vec();
        self.database
            .write(move |connection| {
                let mut insert =
                    connection.prepare_cached("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)")?;
                for sample in &samples {
                    insert.execute(params![
                        sample.id,
                        sample.tenant,
                        sample.agent_id,
                        sample.at.as_microsecond(),
                        encode(sample)?
                    ])?;
                }
                Ok(())
            })
            .await
    }

    async fn query(&self, query: &SampleQuery) -> Result<Vec<Sample>> {
        let query = query.clone();
        self.database
            .read(move |connection| {
                let mut newest = connection
                    .prepare_cached(
                        "SELECT sample FROM samples
                         WHERE tenant = ? AND agent = ? AND at_us >= ? AND at_us < ?
                         ORDER BY at_us DESC, id DESC LIMIT ?",
                    )?
                    .query_map(
                        params![
                            query.tenant,
                            query.agent_id,
                            query.since.as_microsecond(),
                            query.until.as_microsecond(),
                            i64::try_from(query.limit).unwrap_or(i64::MAX)
                        ],
                        |row| row.get::<_, String>(0),
                    )?
                    .map(|text| decode(&text?))
                    .collect::<Result<Vec<Sample>>>()?;
                newest.reverse();
                Ok(newest)
            })
            .await
    }
}
