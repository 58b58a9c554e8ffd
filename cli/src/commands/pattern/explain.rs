//! `parallax pattern explain`: what can be said of a pattern before it runs.

use std::path::Path;

use parallax_control_plane::{Header, Library, Pattern};
use parallax_prism::{
    CompileOptions,
    explain::{Explanation, Most, explain},
};
use serde_json::{Value as Json, json};

use super::print;
use crate::{
    api::Api,
    args::{Args, Explain},
    exit::{Code, Exit, Result},
    render::{clean, pretty, table, value},
};

pub(super) async fn run(args: &Args, options: &Explain) -> Result {
    let (origin, script) = find(args, &options.pattern).await?;
    let pattern = Pattern::parse(&origin, &script).map_err(Exit::failed)?;
    let compiling = CompileOptions { name: origin, ..CompileOptions::default() };
    let explained = explain(&script, &compiling)
        .map_err(|errors| Exit::failed(errors.iter().map(|e| e.render(&script)).collect::<String>()))?;
    if options.mermaid {
        print(explained.mermaid().trim_end());
    } else if options.json {
        print(pretty(&report(&pattern.header, &explained)));
    } else {
        print(text(&pattern.header, &explained));
    }
    Ok(())
}

/// Where a pattern stands, and its script.
async fn find(args: &Args, name: &str) -> Result<(String, String)> {
    let path = Path::new(name);
    if path.is_file() || name.ends_with(".prism") {
        let script = std::fs::read_to_string(path).map_err(|e| Exit::usage(format!("{name}: {e}")))?;
        return Ok((name.to_owned(), script));
    }
    match Api::connect(args).await {
        Ok(mut api) => {
            let pattern = api.get(&format!("/api/patterns/{name}")).await?;
            Ok((name.to_owned(), pattern["script"].as_str().unwrap_or_default().to_owned()))
        }
        Err(e) if e.code == Code::NotRunning => {
            let built_in = Library::open(None).map_err(Exit::failed)?;
            let pattern = built_in.get(name).map_err(|unknown| Exit::usage(format!("{unknown}; {e}")))?;
            Ok((pattern.origin.clone(), pattern.script.clone()))
        }
        Err(e) => Err(e),
    }
}

/// The least and the most calls, as far as the numbers of agents that the pattern takes decide them.
fn figures(header: &Header, explained: &Explanation) -> (Option<f64>, Option<f64>) {
    let needs = &header.requirements;
    let most = match &explained.most {
        Most::Of(most) => most.figure(needs.max_agents.map(u64::from)),
        Most::Unbounded(_) => None,
    };
    (explained.least.figure(Some(needs.min_agents.into())), most)
}

fn report(header: &Header, explained: &Explanation) -> Json {
    let (least, most) = figures(header, explained);
    let mut report = json!(header);
    report["calls"] = json!({
        "least": explained.least,
        "most": explained.most,
        "figures": {"least": least, "most": most},
    });
    report["steps"] = json!(explained.steps);
    report["mermaid"] = json!(explained.mermaid());
    report
}

fn text(header: &Header, explained: &Explanation) -> String {
    let needs = &header.requirements;
    let agents = match (needs.min_agents, needs.max_agents) {
        (min, Some(max)) if min == max => format!("{min}"),
        (min, Some(max)) => format!("{min} to {max}"),
        (min, None) => format!("{min} or more"),
    };
    let capabilities = match needs.capabilities.as_slice() {
        [] => "any".to_owned(),
        all => clean(&all.join(", ")),
    };
    let (least, most) = figures(header, explained);
    let bound = |bound: String, figure: Option<f64>, which: &str| match figure {
        Some(figure) if figure.to_string() != bound => format!("{bound} (at {which} {figure})"),
        _ => bound,
    };
    let least = bound(explained.least.to_string(), least, "least");
    let most = match &explained.most {
        Most::Of(amount) => bound(amount.to_string(), most, "most"),
        Most::Unbounded(reason) => format!("unbounded: {} (line {})", reason.why, reason.line),
    };
    // Only if it is in a formula, and no reason's.
    let mut words = [&least, &most].into_iter().flat_map(|text| text.split(|c: char| !c.is_alphanumeric()));
    let formula = words.any(|word| word.trim_start_matches(|c: char| c.is_ascii_digit()) == "n");
    let n = if formula { "\n                n is the number of agents" } else { "" };
    format!(
        "{} {}\n{}\n\nagents          {agents}\ncapabilities    {capabilities}\n\
         calls, least    {}\ncalls, most     {}{n}\n\nInput\n{}\n\nSteps (Mermaid)\n{}",
        header.name,
        clean(&header.version),
        clean(&header.description),
        clean(&least),
        clean(&most),
        fields(header.input.as_ref()),
        explained.mermaid().trim_end(),
    )
}

/// The properties that `@input` names.
fn fields(schema: Option<&Json>) -> String {
    let Some(schema) = schema else { return "anything".to_owned() };
    let required =
        |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|r| r == name));
    let rows = schema["properties"].as_object().into_iter().flatten().map(|(name, field)| {
        let need = match field.get("default") {
            _ if required(name) => "required".to_owned(),
            Some(default) => format!("default {}", clean(&default.to_string())),
            None => "optional".to_owned(),
        };
        vec![clean(name), value(&field["type"]), need, value(&field["description"])]
    });
    table(&["FIELD", "TYPE", "", "DESCRIPTION"], rows.collect(), "anything")
}
