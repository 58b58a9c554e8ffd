//! The comment at the top of a pattern: `@key value` lines, and a description in plain lines.

use serde::Serialize;
use serde_json::Value as Json;
use utoipa::ToSchema;

use super::input::Gathering;

/// What a pattern says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Header {
    pub name: String,
    pub version: String,
    pub description: String,
    pub tags: Vec<String>,
    /// The JSON Schema that an input has to fit; without one, any does.
    #[schema(value_type = Option<Object>)]
    pub input: Option<Json>,
    pub requirements: Requirements,
}

/// What a pattern needs in order to run.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requirements {
    /// Every agent that it may ask has all of these.
    pub capabilities: Vec<String>,
    /// Fewer than this, and the run fails at once.
    pub min_agents: u32,
    /// It is given no more than this; `None` means all there are.
    pub max_agents: Option<u32>,
    /// A result below this is marked as below the pattern's own standard.
    pub min_confidence: f64,
}

impl Default for Requirements {
    fn default() -> Self {
        Self { capabilities: vec![], min_agents: 0, max_agents: None, min_confidence: 0.0 }
    }
}

const KEYS: &[&str] = &[
    "name",
    "version",
    "description",
    "tags",
    "input",
    "capabilities",
    "agents",
    "minAgents",
    "maxAgents",
    "minConfidence",
];

impl Header {
    /// Reads the `/** … */` that begins a script.
    ///
    /// # Errors
    /// Every line that cannot stand, by its number from 1; a key that is missing.
    pub fn parse(script: &str) -> Result<Self, Vec<(usize, String)>> {
        // A byte order mark is as little of it as it is for the language.
        let script = script.strip_prefix('\u{feff}').unwrap_or(script);
        let body = script.trim_start().strip_prefix("/**").and_then(|rest| rest.split_once("*/"));
        let Some((body, _)) = body else {
            return Err(vec![(1, "a pattern begins with /** … */ that holds @name and @version".to_owned())]);
        };
        let above = script.len() - script.trim_start().len();
        let first_line = script[..above].matches('\n').count() + 1;
        let (mut header, mut prose, mut problems, mut seen) = (Self::default(), vec![], vec![], vec![]);
        let mut gathering: Option<Gathering> = None;
        for (number, line) in body.lines().enumerate().map(|(i, line)| (first_line + i, line)) {
            let line = line.trim().trim_start_matches('*').trim();
            if let Some(begun) = gathering.take() {
                gathering = header.gather(begun, line, &mut problems);
                continue;
            }
            let Some(entry) = line.strip_prefix('@') else {
                prose.push(line);
                continue;
            };
            let (key, value) = entry.split_once(char::is_whitespace).unwrap_or((entry, ""));
            if seen.contains(&key) {
                problems.push((number, format!("@{key} stands twice")));
            }
            seen.push(key);
            if key == "input" {
                gathering = header.gather(Gathering::new(number), value.trim(), &mut problems);
                continue;
            }
            if let Err(problem) = header.set(key, value.trim()) {
                problems.push((number, format!("@{key} {problem}")));
            }
        }
        if let Some(begun) = gathering {
            let why = "its braces do not balance (within a text, */ is written *\\/)";
            problems.push((begun.line, format!("@input does not end: {why}")));
        }
        for key in ["name", "version"] {
            if !seen.contains(&key) {
                problems.push((first_line, format!("@{key} is missing")));
            }
        }
        if seen.contains(&"agents") && (seen.contains(&"minAgents") || seen.contains(&"maxAgents")) {
            let problem = "@agents says what @minAgents and @maxAgents say; drop either";
            problems.push((first_line, problem.to_owned()));
        }
        if header.requirements.max_agents.is_some_and(|max| max < header.requirements.min_agents) {
            problems.push((first_line, "@maxAgents is below @minAgents".to_owned()));
        }
        if header.description.is_empty() {
            header.description = prose.join(" ").trim().to_owned();
        }
        if problems.is_empty() { Ok(header) } else { Err(problems) }
    }

    /// Takes one line of an `@input`, and the schema once it is whole; gives back one that goes on.
    fn gather(
        &mut self,
        mut begun: Gathering,
        line: &str,
        problems: &mut Vec<(usize, String)>,
    ) -> Option<Gathering> {
        match begun.take(line) {
            Ok(false) => return Some(begun),
            Ok(true) => match begun.schema() {
                Ok(schema) => self.input = Some(schema),
                Err((number, problem)) => problems.push((number, format!("@input {problem}"))),
            },
            Err(problem) => problems.push((begun.line, format!("@input {problem}"))),
        }
        None
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let list =
            || value.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect();
        let count = || value.parse().map_err(|_| format!("needs a whole number, not \"{value}\""));
        if value.is_empty() && key != "tags" && key != "capabilities" {
            return Err("needs a value".to_owned());
        }
        match key {
            // `/api/patterns/upload` takes files.
            "name" if super::normal(value) == "upload" => {
                return Err("\"upload\" is a path of the API; choose another name".to_owned());
            }
            "name" if value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) => {
                value.clone_into(&mut self.name);
            }
            "name" => return Err(format!("holds letters, digits, - and _ only, not \"{value}\"")),
            "version" if semantic(value) => value.clone_into(&mut self.version),
            "version" => {
                return Err(format!("needs a semantic version, 1.0.0 or 1.0.0-beta.1, not \"{value}\""));
            }
            "description" => value.clone_into(&mut self.description),
            "tags" => self.tags = list(),
            "capabilities" => self.requirements.capabilities = list(),
            "agents" => {
                let (least, most) = value.split_once("..").unwrap_or((value, value));
                let bounds = least.trim().parse().ok().zip(most.trim().parse().ok());
                let bounds = bounds.filter(|(least, most)| least <= most);
                let (least, most) =
                    bounds.ok_or_else(|| format!("needs a number, 3, or a range, 2..5, not \"{value}\""))?;
                (self.requirements.min_agents, self.requirements.max_agents) = (least, Some(most));
            }
            "minAgents" => self.requirements.min_agents = count()?,
            "maxAgents" => self.requirements.max_agents = Some(count()?),
            "minConfidence" => {
                let parsed = value.parse().ok().filter(|c| (0.0..=1.0).contains(c));
                self.requirements.min_confidence =
                    parsed.ok_or_else(|| format!("needs a number from 0 to 1, not \"{value}\""))?;
            }
            unknown => {
                let near = parallax_runtime::nearest::nearest(unknown, KEYS.iter().copied());
                let hint = near.first().map(|key| format!("; did you mean @{key}?")).unwrap_or_default();
                return Err(format!("is unknown{hint}"));
            }
        }
        Ok(())
    }
}

/// Whether this is a version as <https://semver.org> 2.0.0 has it.
fn semantic(version: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    let number = |part: &str| plain(part) && digits(part) && (part == "0" || !part.starts_with('0'));
    let (version, build) = version.split_once('+').unwrap_or((version, "0"));
    let (core, pre) = version.split_once('-').unwrap_or((version, "0"));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.split('.').all(|part| number(part) || plain(part) && !digits(part))
        && build.split('.').all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with it, line by line.
    fn problems(script: &str) -> Vec<String> {
        let problems = Header::parse(script).unwrap_err();
        problems.into_iter().map(|(line, problem)| format!("{line}: {problem}")).collect()
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        assert_eq!(Header::parse("\u{feff}/**\n * @name a\n * @version 1.0.0\n */\n1").unwrap().name, "a");
    }

    #[test]
    fn a_header_is_read() {
        let header = Header::parse(
            "/**\n * @name VoteTwice\n * @version 1.2.0\n * @minAgents 2\n * @capabilities a, b\n *\n * Asks all.\n * Counts.\n */\n1",
        )
        .unwrap();
        assert_eq!((header.name.as_str(), header.description.as_str()), ("VoteTwice", "Asks all. Counts."));
        assert_eq!(header.requirements.capabilities, ["a", "b"]);
        assert_eq!((header.requirements.min_agents, header.requirements.max_agents), (2, None));
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let script = "\n/**\n * @name a b\n * @minAgent 2\n * @minConfidence 7\n * @maxAgents x\n */\n1";
        assert_eq!(
            problems(script),
            [
                "3: @name holds letters, digits, - and _ only, not \"a b\"",
                "4: @minAgent is unknown; did you mean @minAgents?",
                "5: @minConfidence needs a number from 0 to 1, not \"7\"",
                "6: @maxAgents needs a whole number, not \"x\"",
                "2: @version is missing",
            ]
        );
        assert!(problems("1 + 1")[0].contains("/**"));
        let problems = problems("/**\n * @name Up_Load\n * @version 1.0.0\n */");
        assert_eq!(problems[0], "2: @name \"upload\" is a path of the API; choose another name");
    }

    #[test]
    fn agents_are_a_number_or_a_range() {
        let with = |lines: &str| format!("/**\n * @name a\n * @version 1.0.0\n * {lines}\n */");
        let bounds = |lines: &str| {
            let requirements = Header::parse(&with(lines)).unwrap().requirements;
            (requirements.min_agents, requirements.max_agents)
        };
        assert_eq!(bounds("@agents 3"), (3, Some(3)));
        assert_eq!(bounds("@agents 2..5"), (2, Some(5)));
        for wrong in ["5..2", "law, tax", "2..", "-1"] {
            assert_eq!(
                problems(&with(&format!("@agents {wrong}"))),
                [format!("4: @agents needs a number, 3, or a range, 2..5, not \"{wrong}\"")]
            );
        }
        assert_eq!(
            problems(&with("@agents 3\n * @maxAgents 5")),
            ["1: @agents says what @minAgents and @maxAgents say; drop either"]
        );
    }

    #[test]
    fn a_version_is_semantic() {
        for good in ["1.0.0", "0.10.2-rc.1", "1.0.0-alpha-x+build.007"] {
            assert!(semantic(good), "{good}");
        }
        for bad in
            ["1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "1..0", "banana"]
        {
            assert!(!semantic(bad), "{bad}");
        }
        let problems = problems("/**\n * @name a\n * @version banana\n */");
        assert_eq!(problems, ["3: @version needs a semantic version, 1.0.0 or 1.0.0-beta.1, not \"banana\""]);
    }

    #[test]
    fn an_input_schema_may_span_lines() {
        let with = |input: &str| format!("/**\n * @name a\n * @version 1.0.0\n * {input}\n * Asks.\n */");
        let schema = "@input {\n *   \"properties\": { \"n\": { \"type\": \"number\" } }\n * }\n * @tags x";
        let header = Header::parse(&with(schema)).unwrap();
        assert_eq!(header.input.unwrap()["properties"]["n"]["type"], "number");
        assert_eq!((header.tags, header.description.as_str()), (vec!["x".to_owned()], "Asks."));

        let problem = |input: &str| problems(&with(input)).join("\n");
        assert_eq!(problem("@input yes"), "4: @input is a JSON Schema in braces, not \"yes\"");
        assert_eq!(problem("@input {} x"), "4: @input ends before \"x\"");
        assert!(
            problem("@input {\n *   type: 1\n * }")
                .starts_with("5: @input is not JSON: key must be a string")
        );
        assert!(problem("@input { \"a\": {").starts_with("4: @input does not end: its braces"));
        let message = problem("@input { \"properties\": { \"n\": { \"type\": \"nmber\" } } }");
        assert!(message.starts_with("4: @input is not a JSON Schema: /properties/n/type: "), "{message}");
    }
}
