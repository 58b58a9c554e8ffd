//! `parallax status`.

use serde_json::json;

use super::print;
use crate::{
    api::Api,
    args::Args,
    exit::{Code, Exit, Result},
    instance,
    render::{pretty, value},
    settings,
};

pub(super) async fn run(args: &Args, as_json: bool) -> Result {
    let mut api = Api::connect(args).await?;
    let health = api.get("/health").await?;
    let agents = api.get("/api/agents").await?;
    let nodes = api.get("/api/nodes").await?;
    let running = api.get("/api/executions?limit=1&status=running").await?;
    let healthy = health["status"] == "healthy";
    if as_json {
        print(pretty(&json!({
            "health": health,
            "agents": agents["count"],
            "byCapability": agents["byCapability"],
            "dataPlaneNodes": nodes["nodes"],
            "runsRunning": running["total"],
            "instance": instance::running(&settings::data_dir(&args.place)?).first(),
        })));
    } else {
        print(format_args!(
            "control plane  {}, version {}",
            value(&health["status"]),
            value(&health["version"])
        ));
        let addresses: Vec<_> =
            nodes["nodes"].as_array().into_iter().flatten().map(|node| value(&node["address"])).collect();
        print(format_args!("data plane     {} node(s) {}", addresses.len(), addresses.join(", ")));
        print(format_args!("agents         {}", agents["count"]));
        print(format_args!("runs           {} running", running["total"]));
    }
    if healthy {
        return Ok(());
    }
    let waiting: Vec<_> = health["waitingFor"].as_array().into_iter().flatten().map(value).collect();
    Err(Exit::new(Code::Failed, format!("not healthy; waiting for: {}", waiting.join(", "))))
}
