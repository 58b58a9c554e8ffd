//! `parallax agent`.

use super::print;
use crate::{
    api::Api,
    args::{Agent, Args},
    exit::Result,
    render::{pretty, table, value},
};

pub(super) async fn run(args: &Args, command: &Agent) -> Result {
    let Agent::List { json } = command;
    let answer = Api::connect(args).await?.get("/api/agents").await?;
    if *json {
        print(pretty(&answer));
        return Ok(());
    }
    let rows = answer["agents"].as_array().into_iter().flatten().map(|agent| {
        let capabilities: Vec<_> =
            agent["capabilities"].as_array().into_iter().flatten().map(value).collect();
        let text = |field: &str| value(&agent[field]);
        vec![
            text("id"),
            text("name"),
            text("endpoint"),
            capabilities.join(", "),
            text("transport"),
            text("lastSeen"),
        ]
    });
    let header = ["ID", "NAME", "ENDPOINT", "CAPABILITIES", "TRANSPORT", "LAST SEEN"];
    print(table(&header, rows.collect(), "no agents are registered"));
    Ok(())
}
