//! `/api/openapi.json` says what is served, and what is served is as it says.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use crate::world::{Setup, World, register, registration};

const METHODS: [&str; 4] = ["get", "post", "put", "delete"];

async fn described(world: &World) -> Json {
    let response = world.get("/api/openapi.json").await;
    assert_eq!(response.status, 200);
    response.json()
}

#[tokio::test]
async fn every_path_that_is_described_is_served_and_no_other() {
    let world = World::start().await;
    let description = described(&world).await;
    assert_eq!(description["openapi"], "3.1.0");
    let mut operations = BTreeSet::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        let asked = path.replace("{id}", "x").replace("{name}", "x").replace("{other}", "x");
        for method in METHODS {
            let described = !item[method].is_null();
            let response = world.http(&method.to_uppercase(), &asked, "").await;
            let unserved = response.body.contains("PARALLAX-API-404") || response.status == 405;
            assert_eq!(described, !unserved, "{method} {path}: {response:?}");
            if !described {
                response.problem(405, "PARALLAX-API-405");
                continue;
            }
            let operation = &item[method];
            let name = operation["operationId"].as_str().unwrap();
            assert!(operations.insert(name.to_owned()), "{name} is two operations");
            for response in operation["responses"].as_object().unwrap().values() {
                assert!(response["description"].is_string(), "{method} {path}: {response}");
            }
            assert!(operation["summary"].is_string(), "{method} {path} says what it does");
            let failed = &operation["responses"]["default"]["content"]["application/problem+json"]["schema"];
            assert_eq!(failed["$ref"], "#/components/schemas/Problem", "{method} {path}");
        }
    }
    assert!(operations.len() > 30, "{operations:?}");
    // Routes come from the same declaration as their description, unless one is made the plain way.
    assert!(!include_str!("../../src/services/http.rs").contains(".route("));
}

/// Checks a response against what is described for its path, method and status.
struct Checked<'a> {
    world: &'a World,
    description: Json,
}

impl Checked<'_> {
    async fn call(&self, method: &str, template: &str, path: &str, body: &str) -> Json {
        let response = self.world.http(method, path, body).await;
        let operation = &self.description["paths"][template][method.to_lowercase()];
        let described = match &operation["responses"][response.status.to_string()] {
            Json::Null => &operation["responses"]["default"]["content"]["application/problem+json"],
            described => &described["content"]["application/json"],
        };
        let mut schema = described["schema"].clone();
        assert!(schema.is_object(), "{method} {path} {}: no schema in {operation}", response.status);
        schema["components"] = self.description["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let body = response.json();
        let errors: Vec<_> =
            validator.iter_errors(&body).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{method} {path}: {errors:?}\n{body:#}");
        // A schema that says nothing would fit everything.
        assert!(!validator.is_valid(&json!("text")), "{method} {template}: {schema}");
        body
    }

    async fn get(&self, template: &str, path: &str) -> Json {
        self.call("GET", template, path, "").await
    }
}

#[tokio::test]
async fn answers_are_as_described() {
    let patterns = vec![("add", "({ sum: input.a + input.b }) ~> 0.5"), ("broken-off", "nothing.at.all")];
    let world = World::start_with(Setup { patterns, ..Setup::default() }).await;
    let mut registry = world.as_operator().await;
    register(&mut registry, registration("a", &["tell"])).await;
    let checked = Checked { world: &world, description: described(&world).await };
    let execute = "/api/patterns/{name}/execute";
    let added =
        checked.call("POST", execute, "/api/patterns/add/execute", "{\"input\": {\"a\": 1, \"b\": 2}}").await;
    checked.call("POST", execute, "/api/patterns/broken-off/execute", "{}").await;
    checked.call("POST", execute, "/api/patterns/add/execute", "{").await;
    let accepted =
        checked.call("POST", "/api/executions", "/api/executions", "{\"patternName\": \"add\"}").await;
    assert_eq!(accepted["status"], "accepted");
    let id = added["execution"]["id"].as_str().unwrap();
    let run = format!("/api/executions/{id}");
    checked.get("/api/executions/{id}", &run).await;
    for part in ["events", "timeline", "replay"] {
        checked.get(&format!("/api/executions/{{id}}/{part}"), &format!("{run}/{part}")).await;
    }
    checked.call("POST", "/api/executions/{id}/cancel", &format!("{run}/cancel"), "{}").await;
    checked.call("POST", "/api/executions/{id}/retry", &format!("{run}/retry"), "").await;
    checked.get("/api/executions/{id}/diff/{other}", &format!("{run}/diff/{id}")).await;
    checked.get("/api/patterns/{name}", "/api/patterns/voting").await;
    checked.get("/api/patterns/{name}/metrics", "/api/patterns/add/metrics").await;
    checked.call("POST", "/api/patterns/{name}/validate", "/api/patterns/voting/validate", "{}").await;
    let script = "/** @name Mine\n * @version 1.0.0\n */\n1 ~> 0.5";
    let upload = json!({"script": script}).to_string();
    checked.call("POST", "/api/patterns", "/api/patterns", &upload).await;
    checked.call("PUT", "/api/patterns/{name}", "/api/patterns/mine", &upload).await;
    let file = json!({"filename": "mine.prism", "content": script}).to_string();
    checked.call("POST", "/api/patterns/upload", "/api/patterns/upload", &file).await;
    let refused = checked.call("POST", "/api/patterns", "/api/patterns", "{\"script\": \"1\"}").await;
    assert!(refused["diagnostics"].is_array(), "{refused}");
    checked.get("/api/patterns/{name}/versions", "/api/patterns/mine/versions").await;
    let version = "{\"version\": \"1.0.0\"}";
    checked.call("PUT", "/api/patterns/{name}/current", "/api/patterns/mine/current", version).await;
    checked.call("POST", "/api/executions/adhoc", "/api/executions/adhoc", &upload).await;
    let told = json!({"patternName": "add", "webhook": {"url": "http://127.0.0.1:9/"}}).to_string();
    let told = checked.call("POST", "/api/executions", "/api/executions", &told).await;
    let told = format!("/api/executions/{}", told["id"].as_str().unwrap());
    assert_eq!(checked.get("/api/executions/{id}", &told).await["webhook"]["failed"], 0);
    let plan = "{\"name\": \"x\", \"patternName\": \"add\", \"intervalSeconds\": 3600}";
    checked.call("POST", "/api/schedules", "/api/schedules", plan).await;
    checked.call("PUT", "/api/schedules/{name}", "/api/schedules/x", plan).await;
    for act in ["pause", "resume", "trigger"] {
        let (template, path) = (format!("/api/schedules/{{name}}/{act}"), format!("/api/schedules/x/{act}"));
        checked.call("POST", &template, &path, "").await;
    }
    checked.get("/api/schedules/{name}", "/api/schedules/x").await;
    checked.get("/api/agents/{id}", "/api/agents/a").await;
    checked.get("/api/agents/{id}", "/api/agents/nobody").await;
    checked.get("/api/agents/{id}/health", "/api/agents/a/health").await;
    checked.get("/api/license/check/{feature}", "/api/license/check/patterns").await;
    for path in [
        "/health",
        "/health/live",
        "/api/agents",
        "/api/agents/stats/capabilities",
        "/api/patterns",
        "/api/executions",
        "/api/executions/stats/summary",
        "/api/executions/stats/hourly",
        "/api/executions/stats/daily",
        "/api/license",
        "/api/license/features",
        "/api/schedules",
        "/api/nodes",
        "/api/openapi.json",
    ] {
        checked.get(path, path).await;
    }
}
