use futures::FutureExt;
use jiff::Timestamp;
use parallax_security::{Identity, Transport as Via};

use super::*;

/// Somebody of the default tenant; plaintext without a kind.
fn peer(kind: Option<Kind>, id: &str) -> Peer {
    let identity = kind.map(|kind| Identity::new("default", kind, id).unwrap());
    let transport = if identity.is_some() { Via::Mtls } else { Via::Plaintext };
    Peer { identity, transport, addr: ([127, 0, 0, 1], 1).into() }
}

/// The agent "a" as this peer registers it.
fn registered_by(peer: &Peer) -> Agent {
    let message =
        proto::AgentRegistration { id: "a".into(), endpoint: "localhost:1".into(), ..Default::default() };
    let principal = peer.identity.as_ref().map(ToString::to_string);
    Agent::from_wire(message, "default", Transport::Mtls, principal, Timestamp::UNIX_EPOCH).unwrap()
}

#[test]
fn an_agent_yields_to_its_own_identity_and_to_operators() {
    let (own, operator, plain) =
        (peer(Some(Kind::Agent), "a"), peer(Some(Kind::Operator), "someone"), peer(None, ""));
    for (before, after, yields) in [
        (&own, &own, true),
        (&own, &operator, true),
        (&own, &plain, false),
        (&plain, &plain, true),
        // Nobody can say whose it was: the first that can has it.
        (&plain, &own, true),
        (&operator, &operator, true),
        (&operator, &own, false),
        (&operator, &plain, false),
    ] {
        let (kept, new) = (registered_by(before), registered_by(after));
        assert_eq!(may_replace(&kept, &new, after).is_ok(), yields, "{before:?} by {after:?}");
    }
}

#[test]
fn plaintext_touches_plaintext_only() {
    let (own, plain) = (peer(Some(Kind::Agent), "a"), peer(None, ""));
    for (owner, toucher, may) in
        [(&own, &own, true), (&own, &plain, false), (&plain, &own, true), (&plain, &plain, true)]
    {
        assert_eq!(may_touch(toucher, &registered_by(owner)).is_ok(), may, "{owner:?} by {toucher:?}");
    }
}

#[test]
fn a_peer_speaks_for_itself_or_as_operator_of_its_tenant() {
    let key = |tenant: &str, id: &str| AgentKey { tenant: tenant.to_owned(), id: id.to_owned() };
    let (own, operator, plain) =
        (peer(Some(Kind::Agent), "a"), peer(Some(Kind::Operator), "someone"), peer(None, ""));
    for (peer, tenant, id, may) in [
        (&own, "default", "a", true),
        (&own, "default", "b", false),
        (&own, "other", "a", false),
        (&operator, "default", "b", true),
        (&operator, "other", "b", false),
        (&plain, "default", "b", true),
        (&plain, "other", "b", false),
    ] {
        assert_eq!(may_speak_for(peer, &key(tenant, id)).is_ok(), may, "{peer:?} for {tenant}/{id}");
    }
}

#[test]
fn keys_are_read_back() {
    let key = AgentKey { tenant: "default".to_owned(), id: "a.b-c".to_owned() };
    assert_eq!(parse_key(&store_key(&key)).unwrap(), key);
    assert!(parse_key("/elsewhere/default/a").is_err());
}

#[tokio::test]
async fn followers_are_told_what_they_missed_and_no_more() {
    let (view, metrics) = (Arc::new(View::default()), ControlPlaneMetrics::new(&mut Default::default()));
    let agent = |id: &str, port: u16| {
        let mut agent = registered_by(&peer(None, ""));
        (agent.key.id, agent.endpoint) = (id.to_owned(), format!("localhost:{port}"));
        Arc::new(agent)
    };
    view.replace(1, vec![agent("gone", 1), agent("kept", 1), agent("moved", 1)], &metrics);
    let mut updates = Box::pin(view::follow(view.clone(), Some("default".to_owned())));
    let mut next = || {
        let (revision, update) = updates.next().now_or_never().flatten()?;
        Some(match update {
            Update::Snapshot(agents) => format!("{revision}: {} agents", agents.len()),
            Update::Upsert(agent) => format!("{revision}: {} at {}", agent.key.id, agent.endpoint),
            Update::Remove(key) => format!("{revision}: {} is gone", key.id),
        })
    };
    assert_eq!(next().unwrap(), "1: 3 agents");
    // The store was away: what it has now is compared with what was known.
    view.replace(9, vec![agent("kept", 1), agent("moved", 2), agent("new", 1)], &metrics);
    for told in ["9: moved at localhost:2", "9: new at localhost:1", "9: gone is gone"] {
        assert_eq!(next().unwrap(), told);
    }
    assert_eq!(next(), None);
    for revision in 10..10_000 {
        view.apply(revision, vec![(agent("moved", 2).key.clone(), Some(agent("moved", 3)))], &metrics);
    }
    assert_eq!(next().unwrap(), "9999: 3 agents", "it was too slow, and begins anew");
    assert_eq!(next(), None);
}
