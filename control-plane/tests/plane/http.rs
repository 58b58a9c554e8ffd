//! The HTTP API, as REST clients that exist today reach it: HTTP/1.1 in plaintext from loopback.

use serde_json::json;

use crate::world::{Setup, World, register, registration, soon};

async fn world() -> World {
    let patterns = vec![("add", "({ sum: input.a + input.b }) ~> 0.5"), ("broken-off", "nothing.at.all")];
    World::start_with(Setup { patterns, ..Setup::default() }).await
}

#[tokio::test]
async fn health_tells_what_is_waited_for() {
    let world = World::start_with(Setup { nodes_wanted: 1, ..Setup::default() }).await;
    let health = world.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("unhealthy")));
    assert_eq!(health.json()["waitingFor"], json!(["data-plane nodes"]));
    let ready = world.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("data-plane nodes"), "{ready:?}");
    assert_eq!(world.get("/health/live").await.status, 200);

    let world = World::start().await;
    soon(world.plane.readiness.ready()).await;
    let health = world.get("/health").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("healthy")));
    for field in ["timestamp", "version", "services"] {
        assert!(!health.json()[field].is_null(), "{field}");
    }
    assert_eq!(world.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn a_web_page_in_a_browser_on_this_machine_is_not_served() {
    let world = World::start().await;
    let foreign = [
        "host: evil.example",
        "host: localhost.evil.example:3000",
        "host: localhost\r\norigin: http://evil.example",
        "host: localhost\r\norigin: null",
    ];
    for headers in foreign {
        let refused = world.http_as(headers, "GET", "/api/executions", "").await;
        assert!(refused.problem(403, "PARALLAX-API-003").contains("use mTLS"), "{headers}");
    }
    for headers in ["host: 127.0.0.1:3000", "host: [::1]:3000\r\norigin: http://localhost:5173"] {
        assert_eq!(world.http_as(headers, "GET", "/api/executions", "").await.status, 200, "{headers}");
    }
}

#[tokio::test]
async fn runs_are_counted() {
    let world = world().await;
    let run = world.http("POST", "/api/patterns/add/execute", "{\"input\": {\"a\": 1, \"b\": 2}}").await;
    assert_eq!(run.status, 200, "{run:?}");
    let metrics = world.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: application/openmetrics-text"), "{}", metrics.head);
    let count = metrics.body.lines().find(|line| line.starts_with("parallax_runs_started_total{")).unwrap();
    assert!(count.contains("pattern=\"add\"") && count.ends_with(" 1"), "{count}");
}

#[tokio::test]
async fn agents_are_listed() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("a", &["tell", "translate"])).await;
    register(&mut registry, registration("b", &["tell"])).await;
    let agents = world.get("/api/agents").await.json();
    assert_eq!((&agents["count"], &agents["byCapability"]), (&json!(2), &json!({"tell": 2, "translate": 1})));
    assert!(agents["timestamp"].is_string());
    let agent = &agents["agents"][0];
    assert_eq!(
        (&agent["id"], &agent["status"], &agent["endpoint"]),
        (&json!("a"), &json!("active"), &json!("127.0.0.1:7001"))
    );
    for field in ["name", "capabilities", "metadata", "lastSeen", "source"] {
        assert!(!agent[field].is_null(), "{field}: {agent}");
    }
    assert_eq!(world.get("/api/agents/a").await.json(), *agent);
    let problem = world.get("/api/agents/c").await.problem(404, "PARALLAX-REGISTRY-002");
    assert!(problem.contains("\"c\""), "{problem}");
}

#[tokio::test]
async fn patterns_are_listed() {
    let world = world().await;
    let patterns = world.get("/api/patterns").await.json();
    let listed = patterns["patterns"].as_array().unwrap();
    assert_eq!(patterns["count"], listed.len());
    for name in ["add", "ConsensusBuilder", "ConfidenceCascade", "Voting"] {
        assert!(listed.iter().any(|pattern| pattern["name"] == name), "{name}");
    }
    for spelling in ["consensus-builder", "consensus_builder", "ConsensusBuilder"] {
        assert_eq!(world.get(&format!("/api/patterns/{spelling}")).await.json()["name"], "ConsensusBuilder");
    }
    let problem = world.get("/api/patterns/votin").await.problem(404, "PARALLAX-PATTERN-001");
    assert!(problem.contains("did you mean voting"), "{problem}");
}

#[tokio::test]
async fn a_run_is_executed_and_found_again() {
    let world = world().await;
    let execute = async |name: &str| {
        let path = format!("/api/patterns/{name}/execute");
        let response = world.http("POST", &path, "{\"input\": {\"a\": 1, \"b\": 2}}").await;
        assert_eq!(response.status, 200, "existing clients send any 5xx again: {response:?}");
        assert!(response.json()["duration"].is_u64());
        response.json()["execution"].clone()
    };
    let added = execute("add").await;
    assert_eq!((&added["status"], &added["result"]), (&json!("completed"), &json!({"sum": 3})));
    let failed = execute("broken-off").await;
    assert_eq!(failed["status"], "failed");
    assert!(failed["error"].as_str().unwrap().contains("nothing"), "{failed}");

    let found = world.get(&format!("/api/executions/{}", added["id"].as_str().unwrap())).await.json();
    assert_eq!((&found["result"], &found["input"]), (&added["result"], &json!({"a": 1, "b": 2})));
    assert_eq!(found["journal"].as_array().unwrap().len(), 2, "{found}");
    let page = world.get("/api/executions?limit=1").await.json();
    assert_eq!((&page["total"], &page["executions"][0]["id"]), (&json!(2), &failed["id"]), "newest first");
    let page = world.get("/api/executions?limit=1&offset=1").await.json();
    assert_eq!((&page["offset"], &page["executions"][0]["id"]), (&json!(1), &added["id"]));
    let page = world.get("/api/executions?status=failed").await.json();
    assert_eq!((&page["total"], &page["executions"][0]["id"]), (&json!(1), &failed["id"]));
    let page = world.get("/api/executions?pattern=Add").await.json();
    assert_eq!((&page["total"], &page["executions"][0]["id"]), (&json!(1), &added["id"]));
}

#[tokio::test]
async fn bad_requests_are_named() {
    let world = world().await;
    let execute = "/api/patterns/add/execute";
    let body = async |text: &str| world.http("POST", execute, text).await.problem(400, "PARALLAX-API-001");
    let problem = body("{\"input\": {}, \"optons\": {}}").await;
    assert!(problem.contains("unknown field `optons`") && problem.contains("column"), "{problem}");
    let problem = body("{\"options\": {\"timeout\": \"soon\"}}").await;
    assert!(problem.contains("\"soon\"") && problem.contains("line 1"), "{problem}");
    assert!(body("").await.starts_with("body: "));
    let large = format!("{{\"input\": \"{}\"}}", "x".repeat(16 << 20));
    let large = world.http("POST", execute, &large).await.problem(413, "PARALLAX-API-413");
    assert!(large.contains("16777216 bytes"), "{large}");

    for (query, named) in [
        ("limit=0", "limit: 0 is not from 1 to 1000"),
        ("limit=1001", "limit: 1001 is not from 1 to 1000"),
        ("limit=many", "limit: \"many\" is not a whole number"),
        ("offset=-1", "offset: \"-1\" is not a whole number"),
        ("status=done", "status: status \"done\" is none of pending"),
        ("limt=3", "\"limt\" is unknown; known are limit"),
    ] {
        let problem = world.get(&format!("/api/executions?{query}")).await.problem(400, "PARALLAX-API-001");
        assert!(problem.contains(named), "{problem}");
    }
    let problem = world.get("/api/executions/7").await.problem(400, "PARALLAX-API-001");
    assert!(problem.contains("\"7\""), "{problem}");
    let unknown = "/api/executions/0196a5b0-0000-7000-8000-000000000000";
    assert!(world.get(unknown).await.problem(404, "PARALLAX-RUN-001").contains(&unknown[16..]));
    let unserved = world.get("/api/nothing").await.problem(404, "PARALLAX-API-404");
    assert!(unserved.contains("GET /api/nothing"), "{unserved}");
    let unserved = world.http("PATCH", "/api/executions", "").await;
    assert!(unserved.head.contains("allow: get,head,post"), "{}", unserved.head);
    let unserved = unserved.problem(405, "PARALLAX-API-405");
    assert!(unserved.contains("/api/executions is served, but not to PATCH"), "{unserved}");
    world.get("/api/agents/%ff").await.problem(400, "PARALLAX-API-400");
}

#[tokio::test]
async fn an_input_is_checked_before_it_is_run() {
    let world = world().await;
    let validate = async |name: &str, body: &str| {
        world.http("POST", &format!("/api/patterns/{name}/validate"), body).await
    };
    let fits = validate("confidence_cascade", "{\"input\": {\"target\": 0.5}}").await.json();
    assert_eq!(fits, json!({"valid": true, "errors": []}));
    let misfit = validate("confidence-cascade", "{\"input\": {\"target\": 7}}").await.json();
    assert_eq!(misfit, json!({"valid": false, "errors": ["/target: 7 is greater than the maximum of 1"]}));
    validate("no-such-pattern", "{}").await.problem(404, "PARALLAX-PATTERN-001");
    assert_eq!(world.get("/api/executions").await.json()["total"], 0);
}

#[tokio::test]
async fn runs_are_reckoned_up() {
    let world = world().await;
    for name in ["add", "add", "broken-off"] {
        world
            .http("POST", &format!("/api/patterns/{name}/execute"), "{\"input\": {\"a\": 1, \"b\": 2}}")
            .await;
    }
    let summary = world.get("/api/executions/stats/summary").await.json();
    for (field, value) in [
        ("total", json!(3)),
        ("completed", json!(2)),
        ("failed", json!(1)),
        ("averageConfidence", json!(0.5)),
    ] {
        assert_eq!(summary[field], value, "{field}: {summary}");
    }
    assert_eq!(summary["counted"], json!({"runs": 3, "complete": true}));
    let of_one = world.get("/api/patterns/broken_off/metrics").await.json();
    assert_eq!((&of_one["total"], &of_one["successRate"]), (&json!(1), &json!(0.0)));
    assert_eq!(of_one["averageConfidence"], json!(null), "absent is absent");
    for (span, count) in [("hourly", 24), ("daily", 30)] {
        let line = world.get(&format!("/api/executions/stats/{span}")).await.json();
        let buckets = line["buckets"].as_array().unwrap();
        let total: u64 = buckets.iter().map(|bucket| bucket["total"].as_u64().unwrap()).sum();
        assert_eq!((buckets.len(), total), (count, 3), "{span}");
    }
}

#[tokio::test]
async fn agents_are_filtered_counted_and_removed() {
    let world = World::start().await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("a", &["tell", "translate"])).await;
    register(&mut registry, registration("b", &["tell"])).await;
    let listed = world.get("/api/agents?capability=tell,translate").await.json();
    assert_eq!((&listed["count"], &listed["agents"][0]["id"]), (&json!(1), &json!("a")));
    world.get("/api/agents?capabilty=tell").await.problem(400, "PARALLAX-API-001");
    let counted = world.get("/api/agents/stats/capabilities").await.json();
    let tell = json!({"name": "tell", "count": 2, "agents": ["a", "b"]});
    assert_eq!((&counted["count"], &counted["capabilities"][0]), (&json!(2), &tell));
    // Without a node nobody can ask it, and nothing is made up.
    let health = world.get("/api/agents/a/health").await.json();
    assert_eq!((&health["status"], &health["source"]), (&json!("unknown"), &json!("registry")), "{health}");
    // What registered over mTLS is not removed in plaintext.
    world.http("DELETE", "/api/agents/a", "").await.problem(403, "PARALLAX-REGISTRY-004");
    world.http("DELETE", "/api/agents/nobody", "").await.problem(404, "PARALLAX-REGISTRY-002");
}

#[tokio::test]
async fn whatever_there_is_is_free() {
    let world = World::start().await;
    let license = world.get("/api/license").await.json();
    assert_eq!((&license["license"], &license["valid"]), (&json!("Apache-2.0"), &json!(true)));
    let features = world.get("/api/license/features").await.json();
    assert!(features["features"].as_object().unwrap().values().all(|enabled| *enabled == true));
    let check = async |feature: &str| world.get(&format!("/api/license/check/{feature}")).await.json();
    assert_eq!(check("patterns").await, json!({"feature": "patterns", "enabled": true}));
    assert_eq!(check("time-travel").await["enabled"], false, "what is not there cannot be used");
}

#[tokio::test]
async fn what_an_operation_does_not_take_is_refused() {
    let world = world().await;
    let run =
        world.http("POST", "/api/patterns/add/execute", "{\"input\": {\"a\": 1, \"b\": 2}}").await.json();
    let retry = format!("/api/executions/{}/retry", run["execution"]["id"].as_str().unwrap());
    let start =
        |options: &str| format!("{{\"patternName\": \"add\", \"input\": {{\"a\": 1, \"b\": 2}}, {options}}}");
    let every = |seconds: u64| {
        format!("{{\"name\": \"s\", \"patternName\": \"add\", \"intervalSeconds\": {seconds}}}")
    };
    let cases = [
        ("GET", "/api/executions/stats/daily?days=3", String::new(), "\"days\" is unknown; known are none"),
        ("GET", "/api/executions?limit=1&limit=2", String::new(), "\"limit\" is given twice"),
        ("GET", "/api/executions?before=zzz", String::new(), "id: \"zzz\""),
        ("POST", &retry, "{\"again\": true}".to_owned(), "body: nothing of it would be read"),
        ("POST", "/api/executions", start("\"options\": {\"timeout\": 0}"), "options.timeout: 0 is no time"),
        ("POST", "/api/executions", start("\"options\": {\"maxAgents\": []}"), "options.maxAgents: "),
        (
            "POST",
            "/api/executions",
            start("\"webhook\": {\"url\": \"http://169.254.169.254/\"}"),
            "webhook.url: leads to an address",
        ),
        ("POST", "/api/schedules", every(u64::MAX), "intervalSeconds: 18446744073709551615 never comes"),
    ];
    for (method, path, body, message) in cases {
        let refused = world.http(method, path, &body).await;
        assert!(
            refused.status == 400 && refused.body.contains(&message.escape_debug().to_string()),
            "{method} {path} {body}: {refused:?}"
        );
    }
    assert_eq!(world.http("POST", &retry, "{}").await.status, 202);
}
