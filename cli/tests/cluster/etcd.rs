//! A registry on etcd that goes away and comes back.

use std::time::Duration;

use parallax_proto::registry::{RenewRequest, registry_client::RegistryClient};
use parallax_runtime::{store::servers::etcd::Etcd, wire::duration_to_wire};
use parallax_security::Kind;
use serde_json::json;
use tonic::Code;

use crate::{
    agents::{registration, says},
    world::{World, soon},
};

#[tokio::test]
async fn while_etcd_is_away_only_writes_are_refused_and_no_agent_is_lost() {
    let Some(mut etcd) = Etcd::start(1).await else { return };
    let url = etcd.url();
    let world = World::start_with(|settings| settings.stores.registry = url).await;
    let (able, calls) = says("able", "de", 0.9);
    world.agent(able).await;
    // Shorter than etcd will be away. It never registers again.
    let mut idle = registration("idle", "127.0.0.1:1");
    idle.agent.as_mut().unwrap().ttl = Some(duration_to_wire(Duration::from_secs(4)));
    let mut registry = RegistryClient::new(world.dial("default", Kind::Operator, "someone").await);
    let lease_id = registry.register(idle).await.unwrap().into_inner().lease_id;
    let renew = RenewRequest { lease_id, ttl: None };
    let mut api = world.api().await;

    for (silent, asked) in [(true, 1), (false, 2)] {
        registry.renew(renew.clone()).await.unwrap();
        if silent {
            etcd.freeze(0);
        } else {
            etcd.kill(0);
        }
        soon(async {
            while api.get("/health").await.unwrap()["status"] == "healthy" {
                let refused = registry.register(registration("late", "127.0.0.1:2")).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unavailable, "{refused}");
                assert!(refused.message().contains("out of reach, try again: etcd://"), "{refused}");
            }
        })
        .await;
        let health = api.get("/health").await.unwrap();
        assert_eq!(
            (&health["status"], &health["services"]["registry"]["status"]),
            (&json!("degraded"), &json!("degraded"))
        );
        assert_eq!(health["waitingFor"], json!(["registry store"]));
        assert_eq!(registry.renew(renew.clone()).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(api.get("/api/agents").await.unwrap()["count"], 2);
        let input = json!({"task": "tell", "agents": ["able"]});
        let run = world.run("confidence-cascade", input).await;
        assert_eq!((&run["result"]["decision"], calls.count()), (&json!("de"), asked), "{run}");

        if silent {
            etcd.thaw(0);
        } else {
            etcd.run(0);
        }
        soon(async { while api.get("/health").await.unwrap()["status"] != "healthy" {} }).await;
        assert_eq!(api.get("/api/agents").await.unwrap()["count"], 2);
        assert_eq!(soon(registry.renew(renew.clone())).await.unwrap().into_inner().lease_id, renew.lease_id);
    }
    // What has been silent since goes, and only that.
    soon(async { while api.get("/api/agents").await.unwrap()["count"] == 2 {} }).await;
    assert_eq!(api.get("/api/agents").await.unwrap()["agents"][0]["id"], "able");
    drop(api);
    world.stop().await;
}
