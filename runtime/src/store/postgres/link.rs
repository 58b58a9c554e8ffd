//! The connection that questions share.

use std::sync::Arc;

use super::server::{Server, Session, Trouble};
use crate::store::{Result, StoreError};

/// A connection that is opened again when it is lost. Those who share it do not wait for each other's answers.
pub(super) struct Link {
    server: Arc<Server>,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
}

impl Link {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, session: tokio::sync::Mutex::default() }
    }

    async fn session(&self) -> Result<Arc<Session>, Trouble> {
        let mut current = self.session.lock().await;
        match &*current {
            Some(session) if !session.lost.is_cancelled() => Ok(session.clone()),
            _ => Ok(current.insert(Arc::new(self.server.connect(|_| {}).await?)).clone()),
        }
    }

    /// Asks once.
    pub(super) async fn ask<T, F>(&self, question: impl FnOnce(Arc<Session>) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let session = self.session().await?;
        session.within(question(session.clone())).await
    }

    /// Asks until there is an answer: for what can be asked twice.
    pub(super) async fn read<T, F>(&self, question: impl Fn(Arc<Session>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        self.server.persist(|_| self.ask(&question)).await.map_err(|e| match e {
            StoreError::InDoubt { what, problem } => StoreError::Away(format!("{what}: {problem}")),
            other => other,
        })
    }
}
