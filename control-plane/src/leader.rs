//! What one process at a time does for all that share a store.

use std::{sync::Arc, time::Duration};

use parallax_runtime::{
    env::Env,
    lifecycle::Lifecycle,
    store::{Expect, RegistryStore, StoreError},
};
use tracing::{debug, warn};

/// How long a leader may be silent before another takes its place.
const TTL: Duration = Duration::from_secs(5);
/// How often the others look whether there is none.
const LOOK: Duration = Duration::from_millis(500);

/// Does `work` whenever this process leads: of all that ask for the same `what` on the same store, one does. The work
/// is dropped when the lead is lost. That may be a moment late, so what it writes is compared and set.
pub(crate) fn lead<F: Future<Output = ()> + Send + 'static>(
    what: &'static str,
    store: Arc<dyn RegistryStore>,
    env: &dyn Env,
    life: &Lifecycle,
    work: impl Fn() -> F + Send + 'static,
) {
    let (key, own, asked) = (format!("/parallax/leader/{what}"), env.id(), life.clone());
    life.spawn(what, async move {
        loop {
            let lease = tokio::select! {
                lease = elected(&*store, &key, &own) => lease,
                () = asked.stopping() => return,
            };
            debug!("this process leads in {what}");
            tokio::select! {
                () = work() => {}
                () = keep(&*store, &lease) => warn!("this process leads no more in {what}"),
                () = asked.stopping() => {}
            }
            // Another need not wait until the lease has run out.
            if let Err(e) = store.revoke(&lease).await {
                warn!("the lead in {what} is not given away before its time: {e}");
            }
        }
    });
}

/// Waits until there is no other leader; returns the lease that keeps the lead.
async fn elected(store: &dyn RegistryStore, key: &str, own: &str) -> String {
    loop {
        match stand(store, key, own).await {
            Ok(Some(lease)) => return lease,
            Ok(None) => {}
            Err(e) => warn!("{key} cannot be asked for: {e}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn stand(store: &dyn RegistryStore, key: &str, own: &str) -> Result<Option<String>, StoreError> {
    if store.get(key).await?.is_some() {
        return Ok(None);
    }
    let lease = store.grant(TTL).await?;
    let Err(e) = store.put(key, own.as_bytes().to_vec(), Some(&lease), Expect::Absent).await else {
        return Ok(Some(lease));
    };
    store.revoke(&lease).await?;
    if matches!(e, StoreError::Conflict { .. }) { Ok(None) } else { Err(e) }
}

/// Returns before the lease can have run out.
async fn keep(store: &dyn RegistryStore, lease: &str) {
    loop {
        tokio::time::sleep(TTL / 3).await;
        let renewed = tokio::time::timeout(TTL / 3, store.renew(lease, None)).await;
        if !matches!(renewed, Ok(Ok(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use parallax_runtime::{env::System, store::Stores};
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn one_leads_until_it_stops_and_then_the_other() {
        let (env, stores) = (System::shared(), Lifecycle::new());
        let store = Stores::new(env.clone(), stores.clone()).registry("memory:").await.unwrap();
        let (told, mut leaders) = mpsc::unbounded_channel();
        let mut lives = Vec::new();
        for process in 0..2 {
            let (life, told) = (Lifecycle::new(), told.clone());
            lead("tests", store.clone(), &*env, &life, move || {
                told.send(process).unwrap();
                std::future::pending()
            });
            lives.push(life);
        }
        let first = leaders.recv().await.unwrap();
        assert!(leaders.try_recv().is_err());
        assert!(lives[first].drain(Duration::from_secs(60)).await);
        assert_eq!(leaders.recv().await.unwrap(), 1 - first);
    }
}
